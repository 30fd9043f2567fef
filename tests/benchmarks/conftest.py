"""What tests of benchmarks share: a script as a module, and the rows of the file that it has written."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def script(repository, monkeypatch) -> Callable[[str], Any]:
    """`script("decoding")`: the module benchmarks/decoding.py."""
    monkeypatch.setattr(sys, "path", [str(repository / "benchmarks"), *sys.path])
    return importlib.import_module


@pytest.fixture(scope="session")
def rows_of() -> Callable[[Path], dict[str, dict[str, Any]]]:
    """`rows_of(file)`: by name, the rows of the only run in a benchmark's file."""

    def read(file: Path) -> dict[str, dict[str, Any]]:
        (run,) = json.loads(file.read_text())["runs"]
        return {row["name"]: row for row in run["rows"]}

    return read
