"""Parity: recompute published reference numbers with this package's own code, from their inputs alone.

In: a folder of fixtures. Out: files under the goldens' names, and a table of errors. `python -m guidedcd.parity FOLDER
--out OUT [--compare]` calls the function of each family module (`method`, `rewards`, `videoreward`, ...)

    compute(folder) -> {file name: {key: tensor} for .safetensors, or a JSON value for .json}

on every folder below FOLDER. It computes one folder without its subfolders, and returns {} where it recognises
nothing. A golden file may contain inputs and outputs side by side: only the inputs are read. `--compare` compares the
results with the goldens. A family module may define the tolerance of each value,

    tolerance(file, key) -> Tolerance | None          None means that this key is not compared

where `file` is the path relative to the folder's parent, e.g. "pta/random.safetensors". Open `__main__` first.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# MKL's float32 functions round differently on different CPUs. The goldens were computed in its compatible mode, which
# is its default on CPUs of other makers. MKL reads this variable once, before its first use.
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")

import attrs

from guidedcd.errors import GuidedCDError

FAMILIES = ("method", "rewards", "videoreward", "videocrafter2")

Results = dict[str, Any]
"""By file name: tensors by key for .safetensors, any JSON value for .json."""


@attrs.frozen
class Tolerance:
    """An error passes when it is at most `absolute + relative * (largest magnitude of the golden tensor)`."""

    relative: float = 1e-5
    absolute: float = 1e-6

    def limit(self, largest: float) -> float:
        """The largest error that passes."""
        return self.absolute + self.relative * largest


FAILURES: list[str] = []
"""One sentence for each file that could not be computed; the command continues and ends with status 1."""


@contextlib.contextmanager
def going_on(path: Path) -> Iterator[None]:
    """Record an exception inside the block in `FAILURES`, under `path`, and continue after the block."""
    try:
        yield
    except Exception as error:
        FAILURES.append(f"{path}: {error if isinstance(error, GuidedCDError) else f'{type(error).__name__}: {error}'}")
