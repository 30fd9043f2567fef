"""Parity: recompute published reference numbers with this package's own code, from their inputs alone.

`python -m guidedcd.parity FOLDER --out OUT [--compare]` visits every folder below FOLDER and asks each family module
(`method`, `rewards`, `videocrafter2`) what it can compute there:

    compute(folder) -> {file name: {key: tensor} for .safetensors, or a JSON value for .json}

for that one folder, without its subfolders, and {} when it knows nothing in it. A golden file may hold inputs and
outputs side by side: only the inputs are read. With `--compare` the results are held against the goldens, within

    tolerance(file, key) -> Tolerance | None          None means that this key is not compared

which a family module may define; `file` is the path relative to the folder's parent, e.g. "pta/random.safetensors".
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# MKL's float32 functions round differently on different CPUs; its compatible mode, which it takes by itself on CPUs of
# other makers, is how the goldens were computed. MKL reads this once, before its first use.
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")

import attrs
from torch import Tensor

from guidedcd.errors import GuidedCDError

FAMILIES = ("method", "rewards", "videocrafter2")

Results = dict[str, dict[str, Tensor] | Any]
"""By file name."""


@attrs.frozen
class Tolerance:
    """An error passes when it is at most `absolute + relative * (largest magnitude of the golden tensor)`."""

    relative: float = 1e-5
    absolute: float = 1e-6

    def limit(self, largest: float) -> float:
        """The largest error that passes."""
        return self.absolute + self.relative * largest


FAILURES: list[str] = []
"""What could not be computed; the command goes on with the rest and ends with status 1."""


@contextlib.contextmanager
def going_on(path: Path) -> Iterator[None]:
    """Note a failure inside the block as one about `path`, and go on after the block."""
    try:
        yield
    except Exception as error:
        FAILURES.append(f"{path}: {error if isinstance(error, GuidedCDError) else f'{type(error).__name__}: {error}'}")
