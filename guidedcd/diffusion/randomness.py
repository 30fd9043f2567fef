"""Noise as a function of (seed, draw): the same numbers on every machine, so that stores keep seeds, not tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from guidedcd.files import digest


def noise(seed: int, draw: int, shape: Sequence[int]) -> Tensor:
    """Standard normal float32 of `shape`, from numpy's Philox generator keyed by (seed, draw), both in [0, 2^64)."""
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, draw], dtype=np.uint64)))
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))


OTHER_STREAM = 2**31
"""Added to a draw's number for the noise of its single-step reference: equal noise would make the energy zero."""


def clip_seed(seed: int, clip: str) -> int:
    """The noise seed of one clip, from the run's seed and the clip's id: independent of order and of sharding."""
    return int(digest([seed, clip])[:8], 16)
