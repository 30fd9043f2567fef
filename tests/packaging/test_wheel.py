"""The wheel: it offers exactly the plugins that the repository holds, and carries every file they need."""

from __future__ import annotations

import subprocess
import tomllib
import zipfile
from pathlib import Path

import entrypoints
import pytest


@pytest.fixture(scope="module")
def names(wheel) -> set[str]:
    """The files in the wheel."""
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_offers_every_shipped_plugin(wheel, repository):
    """The folders under plugins/ are the entry points of the wheel, as read without guidedcd's own code."""
    shipped = {folder.name for folder in (repository / "plugins").iterdir() if (folder / "__init__.py").exists()}

    offered = entrypoints.get_group_named("guidedcd", path=[str(wheel)])

    assert {entry.module_name for entry in offered.values()} == shipped


def test_the_wheel_has_a_command_and_a_pytest_plugin(wheel):
    """`guidedcd` and the fixtures for plugin authors are found by name."""
    command = entrypoints.get_single("console_scripts", "guidedcd", path=[str(wheel)])
    fixtures = entrypoints.get_single("pytest11", "guidedcd", path=[str(wheel)])

    assert (command.module_name, command.object_name) == ("guidedcd.cli", "main")
    assert fixtures.module_name == "guidedcd.testing.pytest_plugin"


def test_the_wheel_carries_every_file(names, repository):
    """Profiles, templates, weights, styles and type markers: whatever is tracked by git is in the wheel."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "guidedcd", "plugins"], cwd=repository, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("this is no git checkout")
    files = [Path(name) for name in listed.stdout.split("\0") if name and (repository / name).exists()]
    expected = {
        file.relative_to("plugins") if file.parts[0] == "plugins" else file for file in files if file.suffix != ".md"
    }

    assert sorted(str(file) for file in expected if str(file) not in names) == []


def test_the_wheel_carries_the_embedded_models(names):
    """Networks, reward models and what describes them: without a network, `guidedcd train` works from the wheel."""
    models = ("clip", "hps", "internv2", "text", "unet", "vae")

    assert {f"guidedcd_shapes/weights/{name}.safetensors" for name in models} <= names
    assert "guidedcd_shapes/weights/meta.json" in names


def test_weights_are_small(repository):
    """No file of weights has 6 MB, and all together have less than 25: a clone and an installation take seconds."""
    folders = [repository / name for name in ("guidedcd", "plugins", "tests", "examples")]
    kinds = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".npz")
    sizes = {file: file.stat().st_size for folder in folders for file in folder.rglob("*") if file.suffix in kinds}

    assert len(sizes) >= 6
    assert max(sizes.values()) < 6e6, sizes
    assert sum(sizes.values()) < 25e6, sizes


def test_every_package_is_typed(names, repository):
    """Type checkers read a package's annotations only if it contains py.typed."""
    packages = {name.split("/")[0] for name in names if name.endswith("/__init__.py") and name.count("/") == 1}
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]

    assert packages == {"guidedcd", *project["entry-points"]["guidedcd"].values()}
    assert [package for package in packages if f"{package}/py.typed" not in names] == []


def test_the_wheel_has_only_our_packages_and_the_licence(names):
    """No tests, caches or folders of output slip in."""
    tops = {name.split("/")[0] for name in names}

    assert all(top.startswith("guidedcd") for top in tops), tops
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_the_licence_is_apache(repository):
    """The licence that pyproject.toml names is the text in LICENSE."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]

    assert project["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in (repository / "LICENSE").read_text()
