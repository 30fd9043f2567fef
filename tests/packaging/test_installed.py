"""The wheel and the source archive, built and installed into environments that have no guidedcd."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from clean_environment import clean_environment

pytestmark = pytest.mark.slow


def run(*command: object, folder: Path) -> str:
    """The output of a command that succeeds."""
    process = subprocess.run([str(word) for word in command], cwd=folder, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def archive(repository, tmp_path_factory) -> Path:
    """The source archive of this repository, built without a network."""
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", folder, repository, folder=folder)
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.mark.parametrize("kind", ["wheel", "archive"])
def test_what_is_built_can_be_installed_and_run(kind, request, package_folders, tmp_path):
    """In a new environment the program starts, lists every shipped component, and nothing is missing for it."""
    package = request.getfixturevalue(kind)
    python = clean_environment(tmp_path / "environment", package_folders)
    pip = [sys.executable, "-m", "pip", "--python", python]
    run(*pip, "install", "-q", "--no-deps", "--no-index", "--no-build-isolation", package, folder=tmp_path)

    where = run(python, "-I", "-c", "import guidedcd; print(guidedcd.__file__)", folder=tmp_path)
    plugins = run(python, "-I", "-m", "guidedcd", "plugins", "list", folder=tmp_path)
    check = subprocess.run([*map(str, pip), "check"], cwd=tmp_path, capture_output=True, text=True).stdout

    assert str(tmp_path / "environment") in where
    for name in ("shapes", "videocrafter2", "pta", "hps", "clip", "internv2", "pickscore"):
        assert name in plugins
    assert [line for line in check.splitlines() if line.startswith("guidedcd ")] == []


def test_the_archive_carries_the_tests(archive):
    """The source archive has tests, their helpers, their committed numbers, and the template of the report."""
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}

    for name in (
        "tests/conftest.py",
        "tests/fakes/toy_plugin.py",
        "tests/goldens/method/pta/ties.json",
        "tests/packaging/test_installed.py",
        "guidedcd/evaluation/report/report.html.j2",
        "pyproject.toml",
    ):
        assert name in names
