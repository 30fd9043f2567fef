"""`guidedcd plugins new`: each kind of package passes the conformance checks, installs, and passes its own tests."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy
import pytest

from guidedcd.plugins.registry import HOOKS
from guidedcd.plugins.scaffold.render import render, write
from guidedcd.testing import checks, run_checks


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write a package and offer it as an editable installation does."""

    def package(kind: str) -> str:
        folder = write(kind, f"my-{kind}", tmp_path / kind)
        monkeypatch.syspath_prepend(folder)
        info = folder / f"guidedcd_my_{kind}-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: guidedcd-my-{kind}\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text(f"[guidedcd]\nmy-{kind} = guidedcd_my_{kind}\n")
        return f"my-{kind}"

    before = set(sys.modules)
    yield package
    for name in {name for name in set(sys.modules) - before if name.startswith("guidedcd_my_")}:
        del sys.modules[name]


@pytest.mark.parametrize("kind", HOOKS)
def test_a_new_package_conforms(package, tmp_path, kind):
    """What the template computes breaks no rule of its kind."""
    name, config = package(kind), None
    if kind == "dataset":
        for number in range(2):
            numpy.save(tmp_path / f"{number}.npy", numpy.zeros((6, 20, 24, 3), dtype=numpy.uint8) + number)
            (tmp_path / f"{number}.txt").write_text("a grey square")
        config = importlib.import_module("guidedcd_my_dataset").MyDatasetConfig(path=str(tmp_path))

    results = run_checks(check for check in checks(kind, name, config=config) if "light" not in str(check))

    assert {result.status for result in results} == {"passed"}, [result.reason for result in results]


@pytest.mark.parametrize("kind", HOOKS)
def test_a_new_package_is_complete(kind):
    """It has a licence, workflows, a README with every command, and an editable installation without a network."""
    files = render(kind, "my-thing")

    assert {"LICENSE", ".github/workflows/ci.yml", ".github/workflows/publish.yml"} <= set(files)
    assert tomllib.loads(files["pyproject.toml"])["tool"]["hatch"]["build"]["dev-mode-dirs"] == ["."]
    assert "id-token: write" in files[".github/workflows/publish.yml"]
    assert ("relative" in files["README.md"]) == (kind == "energy")
    assert all(len(line) <= 100 for line in files["README.md"].splitlines())
    assert not any("$" in text.replace("${{", "") for path, text in files.items() if path != "README.md")
    for path, text in files.items():
        if path.endswith(".py"):
            compile(text, path, "exec")


@pytest.mark.slow
def test_new_packages_install_offline_and_pass_their_tests(tmp_path):
    """All six are installed as `pip install -e` does without a network, and pass their own tests, in one process."""
    site = tmp_path / "site"
    folders = [write(kind, f"my-{kind}", tmp_path / kind) for kind in HOOKS]
    editable = [word for folder in folders for word in ("-e", str(folder))]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    # An editable installation into a folder of its own: `--target` refuses one, a prefix does not.
    done = subprocess.run([*pip, "--prefix", site, *editable], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (packages,) = site.rglob("site-packages")
    paths = os.pathsep.join([*map(str, folders), str(packages), *(path for path in sys.path if Path(path).is_dir())])

    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *[str(f / "tests") for f in folders]]
    done = subprocess.run(tests, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths})

    assert done.returncode == 0, done.stdout + done.stderr
