"""One trained run of the toy teacher, of which every case gets a copy; the options of larger campaigns."""

from __future__ import annotations

import importlib
import os
import pkgutil
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

TOY = """
teacher = "toy"
data = ["toy"]
energies = ["toy"]
rewards = ["toy"]
routes = []
metrics = ["flicker"]
device = "cpu"
[solver]
steps = 10
[preprocess]
videos = 5
draws_per_video = 2
shard_size = 2
[train]
steps = 4
batch_size = 2
log_every = 1
guided_steps = 0
rollouts.videos = 0
checkpoint.every = 2
[evaluate]
prompts = 2
videos = 1
teacher_steps = 4
steps = 2
"""


ROOMS = ("cli", "workflow", "inference", "evaluation", "training", "preprocessing", "rewards", "trials", "models")
"""They are imported before the commands are forked, so that a case takes a tenth of a second."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest tests/faults -m campaign --campaign 500 --campaign-seed 1` has 500 random damages, and 500 kills."""
    group = parser.getgroup("guidedcd")
    group.addoption("--campaign", type=int, default=0, help="number of random damages, and of random kills")
    group.addoption("--campaign-seed", type=int, default=0, help="seed of the random damages and kills")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The random cases of a test, as texts from which it draws; its module states in `USUAL` how many it has."""
    if "random_case" in metafunc.fixturenames:
        count = metafunc.config.getoption("--campaign", 0) or metafunc.module.USUAL
        seed = metafunc.config.getoption("--campaign-seed", 0)
        metafunc.parametrize("random_case", [f"{seed}-{number}" for number in range(count)])


@attrs.frozen
class Toys:
    """The folders that the cases copy, and the module of the toy plugin."""

    home: Path
    """Holds `toy.toml`, a trained `run`, its `store`, and the published checkpoint `model.ckpt` with `config.json`."""
    modules: list[Path]

    def copy(self, folder: Path, names: str) -> None:
        """Put copies of the files and folders `names` into `folder`."""
        folder.mkdir(exist_ok=True)
        for name in names.split():
            source = self.home / name
            if source.is_dir():
                shutil.copytree(source, folder / name)
            else:
                shutil.copy(source, folder)


@pytest.fixture(scope="session")
def toys() -> Iterator[Toys]:
    """The toy run, trained once. Its folder can be read by any user, as pytest's own folders cannot."""
    import forked
    import tiny_checkpoint
    import toy_plugin

    if not hasattr(os, "fork"):
        pytest.skip("needs a system with fork")
    "".encode("utf-8-sig")  # the library may lie where another user cannot read it, so that it is loaded now
    for room in ROOMS:
        package = importlib.import_module(f"guidedcd.{room}")
        for module in pkgutil.walk_packages(getattr(package, "__path__", []), f"{package.__name__}."):
            importlib.import_module(module.name)
    with tempfile.TemporaryDirectory() as name:
        home, modules = Path(name) / "base", Path(name) / "modules"
        Path(name).chmod(0o755)
        info = modules / "toy_components-1.0.dist-info"
        info.mkdir(parents=True)
        (modules / "toy_components.py").write_text(toy_plugin.PLUGIN)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-components\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[guidedcd]\ntoy_components = toy_components\n")
        home.mkdir()
        (home / "toy.toml").write_text(TOY)
        tiny_checkpoint.write(home)
        train = ["train", "--config", "toy.toml", "--out", "run", "--store", "store"]
        done = forked.ended(forked.start(train, home, modules=[modules]), home, seconds=300)
        assert done.status == 0, done.err
        yield Toys(home, [modules])


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that any user can read."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        (Path(name) / "work").mkdir()
        yield Path(name) / "work"
