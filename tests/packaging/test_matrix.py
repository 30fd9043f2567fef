"""The script that runs the tests with the lowest declared versions: which versions it chooses."""

from __future__ import annotations

import runpy
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@pytest.fixture(scope="module")
def script(repository) -> dict[str, Any]:
    """The functions of the script by name."""
    return runpy.run_path(str(repository / "tests" / "packaging" / "matrix.py"))


@pytest.fixture(scope="module")
def lowest(script) -> Callable[[Requirement, list[str], Callable[[str], bool]], str]:
    """The function that chooses a version."""
    return script["lowest"]


@pytest.fixture(scope="module")
def project(repository) -> Mapping[str, Any]:
    """The section `project` of pyproject.toml."""
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(
    ("requirement", "version"),
    [("regex>=2024.5", "2024.5.10"), ("regex>=2024.5,!=2024.5.10", "2024.5.15"), ("regex", "2023.12.25")],
)
def test_the_lowest_version_is_the_least_that_the_requirement_admits(lowest, requirement, version):
    """Versions are compared as versions, not as texts; prereleases and texts that are no version do not count."""
    available = ["2026.11.19", "2024.5.15", "2024.5.10", "2024.5.9rc1", "2023.12.25", "2013-12-31"]

    assert lowest(Requirement(requirement), available, lambda version: True) == version


def test_a_version_without_a_wheel_is_passed_over(lowest):
    """The next version that can be installed is the lowest one."""
    available = ["2.1.2", "2.1.1", "2.1.0"]

    assert lowest(Requirement("markupsafe>=2.1"), available, lambda version: version != "2.1.0") == "2.1.1"


def test_a_requirement_that_no_version_satisfies_ends_the_script(lowest):
    """The sentence names the package, the range and the newest version."""
    with pytest.raises(SystemExit, match=r"no version of torch .* satisfies >=3; the newest is 2.14.1"):
        lowest(Requirement("torch>=3"), ["2.8.0", "2.14.1"], lambda version: True)


def test_every_requirement_is_pinned_once(script, project):
    """The package's own requirements and those of all its extras, also of an extra within another."""
    names = [canonicalize_name(one.name) for one in script["declared"](project)]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]

    assert sorted(set(names)) == sorted({canonicalize_name(Requirement(text).name) for text in texts} - {"guidedcd"})
    assert len(names) == len(set(names))
