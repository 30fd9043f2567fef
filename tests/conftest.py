"""What every test shares: one thread, no network, and where the published fixtures are."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Before any test imports torch or huggingface_hub. Small tensors are fastest on one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("GUIDEDCD_BLOCK", None)
# As guidedcd.parity sets it when it is imported: otherwise processes started later round otherwise than this one.
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")
if os.environ.get("ATEN_CPU_CAPABILITY") in ("default", "avx2"):
    # A processor without AVX-512 has none for oneDNN either; torch's bfloat16 attention needs both to agree.
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")

REPOSITORY = Path(__file__).parents[1]
FIXTURES = Path(os.environ.get("GUIDEDCD_FIXTURES") or REPOSITORY.parent / "shared" / "fixtures")


def pytest_configure(config: pytest.Config) -> None:
    """Run on the CPU alone, also where a GPU is, unless tests with the mark `gpu` are selected."""
    if "not gpu" in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        on_cpu = True
    else:
        import torch

        on_cpu = not torch.cuda.is_available()
    if on_cpu:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: its kernels run on the CPU


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the mark `gpu` without CUDA; keep torch on one thread; give every test the same global random streams."""
    import numpy as np
    import torch

    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    # A process starts with another seed each time, so that a test without a generator would pass by luck.
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Callable[..., Path]:
    """`shared("method", "pta")`: a folder or file of the published fixtures; the test is skipped where it is absent."""

    def find(*parts: str) -> Path:
        path = FIXTURES.joinpath(*parts)
        if not path.exists():
            pytest.skip(f"no fixtures at {path}: set GUIDEDCD_FIXTURES to the folder that holds them")
        return path

    return find


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where Triton's kernels run: interpreted on the CPU, or compiled for a GPU in tests with the mark `gpu`."""
    if request.param == "cpu" and "TRITON_INTERPRET" not in os.environ:
        pytest.skip("kernels are compiled for the GPU in this run")
    if request.param == "cpu" and importlib.util.find_spec("triton"):
        from triton.runtime import interpreter

        prepare = interpreter._patch_lang_tensor

        def prepare_for_numpy(tensor: type, *scope: object) -> None:
            prepare(tensor, *scope)
            # Triton 3.4 (torch 2.8) calls int() of an array with one element, which NumPy 2.4 refuses.
            tensor.__index__ = lambda self: int(self.handle.data.item())

        monkeypatch.setattr(interpreter, "_patch_lang_tensor", prepare_for_numpy)
    return request.param


@pytest.fixture(scope="session")
def package_folders() -> list[Path]:
    """Every folder of installed packages that Python searches: of this environment, and of those that it builds on."""
    return [Path(path) for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder of pyproject.toml."""
    return REPOSITORY


@pytest.fixture
def toys(install: Callable[..., None]) -> Callable[..., None]:
    """A plugin with a component of every kind: teacher toy, data toy, energy shake and rattle, reward smile, ..."""
    from option_plugin import PLUGIN

    install("acme-toys", PLUGIN)
    return install


def build_wheel(source: Path, folder: Path) -> Path:
    """The wheel of a package, built without a network."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this repository."""
    return build_wheel(REPOSITORY, tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def toy(install, monkeypatch, tmp_path):
    """The plugin of the module `toy`, installed; the test runs in its own folder."""
    from toy_plugin import PLUGIN

    monkeypatch.chdir(tmp_path)
    install("toy-components", PLUGIN)
