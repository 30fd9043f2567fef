"""Pytest fixtures for plugin authors: `install` and `tiny_teacher`. Only pytest is imported here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Install a plugin for one test, by writing the files that pip would write.

    `install("acme-motion", code)` writes the module `acme_motion` and metadata that advertises it as the entry point
    `acme_motion`; `spec` replaces the entry point's value, `entry_points` the whole file. Both vanish with the test.
    """
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    before = set(sys.modules)

    def install(
        distribution: str,
        code: str,
        *,
        version: str = "1.0",
        requires: str = "guidedcd",
        spec: str | None = None,
        entry_points: str | None = None,
    ) -> None:
        module = distribution.replace("-", "_")
        (site / f"{module}.py").write_text(code)
        info = site / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\nRequires-Dist: {requires}\n"
        )
        text = f"[guidedcd]\n{module} = {spec or module}\n" if entry_points is None else entry_points
        (info / "entry_points.txt").write_text(text)

    yield install
    for name in set(sys.modules) - before:
        if str(site) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def tiny_teacher() -> Any:
    """A teacher with random weights: 5 frames of 16 x 12 pixels, milliseconds on a CPU."""
    from guidedcd.testing.tiny_teacher import tiny_teacher

    return tiny_teacher()
