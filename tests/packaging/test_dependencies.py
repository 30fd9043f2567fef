"""Dependencies: each is imported by the package, and each package that is imported is declared."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

OPTIONAL = {"bitsandbytes", "triton"}
"""Imported where they are installed; the package works without them."""
FLOW = {"cv2", "torchvision"}
"""Imported by the packages of the extra `flow`, whose distributions need not be installed here."""
ELSEWHERE = {"build", "guidedcd", "hatchling", "mypy", "pytest-xdist", "ruff"}
"""Programs that are run and not imported, and this package with its extra `docs`."""


def imported(folders: Iterable[Path]) -> set[str]:
    """Every top-level name that is imported by the modules in these folders, at the top or in a function."""
    names = set()
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return {name for name in names if name not in sys.stdlib_module_names and not name.startswith("guidedcd")}


def distributions(names: Iterable[str]) -> set[str]:
    """The distributions that install these modules."""
    installed = packages_distributions()
    return {canonicalize_name(name) for module in names for name in installed.get(module, [module])}


@pytest.fixture(scope="module")
def project(repository) -> dict:
    """The section `project` of pyproject.toml."""
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


def declared(requirements: Iterable[str]) -> set[str]:
    """The names of the required distributions."""
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def test_the_package_imports_what_it_declares_and_declares_what_it_imports(project, repository):
    """No dependency is left over, and none is there only because another package needs it."""
    modules = imported([repository / "guidedcd", repository / "plugins"]) - OPTIONAL
    assert "torchvision" in modules and len(project["optional-dependencies"]["flow"]) == len(FLOW)

    # pytest is imported by the plugin for pytest, which pytest itself loads.
    assert distributions(modules - FLOW) - {"pytest"} == declared(project["dependencies"])


def test_the_tests_declare_what_they_import(project, repository):
    """What only tests need is in the extra `dev`, and nothing else is."""
    fakes = {path.stem for path in (repository / "tests" / "fakes").glob("*.py")}
    modules = imported([repository / "tests"]) - fakes - OPTIONAL
    benchmarks = {path.stem for path in (repository / "benchmarks").rglob("*.py")}
    needed = distributions(modules - benchmarks) - declared(project["dependencies"])

    assert needed == declared(project["optional-dependencies"]["dev"]) - ELSEWHERE
