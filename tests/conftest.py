"""What every test shares: one thread, no network, and where the published fixtures are."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Before any test imports torch or huggingface_hub. Small tensors are fastest on one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("GUIDEDCD_BLOCK", None)

REPOSITORY = Path(__file__).parents[1]
FIXTURES = Path(os.environ.get("GUIDEDCD_FIXTURES") or REPOSITORY.parent / "shared" / "fixtures")


def pytest_runtest_setup() -> None:
    """Keep torch on one thread, wherever it was imported."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Callable[..., Path]:
    """`shared("method", "pta")`: a folder or file of the published fixtures; the test is skipped where it is absent."""

    def find(*parts: str) -> Path:
        path = FIXTURES.joinpath(*parts)
        if not path.exists():
            pytest.skip(f"no fixtures at {path}: set GUIDEDCD_FIXTURES to the folder that holds them")
        return path

    return find


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder of pyproject.toml."""
    return REPOSITORY
