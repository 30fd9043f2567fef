"""Functions that the rules of several kinds share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

CAPTIONS = ("a red ball rolls to the left", "two boats drift under a bridge")
T = 700
"""A training timestep in the noisier half of the schedule, where energies act."""


def random(shape: Sequence[int], seed: int) -> Tensor:
    """Standard normal numbers from a generator of this seed."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


@contextmanager
def unchanged(what: str) -> Iterator[None]:
    """Fail if the block changes torch's random state or gradient mode."""
    state, grad = torch.random.get_rng_state(), torch.is_grad_enabled()
    yield
    assert torch.equal(state, torch.random.get_rng_state()), f"{what} drew from torch's global random generator"
    assert grad == torch.is_grad_enabled(), f"{what} turned gradients {'off' if grad else 'on'}"


def is_batch(values: Any, batch: int, what: str) -> None:
    """Fail unless `values` are (batch,) finite numbers."""
    assert isinstance(values, Tensor), f"{what} returned {type(values).__name__}, not a tensor"
    assert values.shape == (batch,), f"{what} returned shape {tuple(values.shape)} for {batch} samples, not ({batch},)"
    assert torch.isfinite(values).all(), f"{what} is not finite: {values.tolist()}"
