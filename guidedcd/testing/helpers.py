"""Functions that the rules of several kinds share."""

from __future__ import annotations

import gc
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from guidedcd.plugins import process_state

Item = TypeVar("Item")
Result = TypeVar("Result")
CAPTIONS = ("a red ball rolls to the left", "two boats drift under a bridge")
T = 700
"""A training timestep in the noisier half of the schedule, where energies act."""


def random(shape: Sequence[int], seed: int) -> Tensor:
    """Standard normal numbers from a generator of this seed."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


@contextmanager
def unchanged(what: str) -> Iterator[None]:
    """Fail if the block changes torch's random state or defaults, or opens a network connection."""
    state = torch.random.get_rng_state()
    with process_state.restored(process_state.NUMERIC) as changes, _offline(what):
        yield
    assert not changes, f"{what} changed {', '.join(changes)}, which all code shares"
    assert torch.equal(state, torch.random.get_rng_state()), f"{what} drew from torch's global random generator"


def is_batch(values: Any, batch: int, what: str) -> None:
    """Fail unless `values` are (batch,) finite numbers."""
    assert isinstance(values, Tensor), f"{what} returned {type(values).__name__}, not a tensor"
    assert values.shape == (batch,), f"{what} returned shape {tuple(values.shape)} for {batch} samples, not ({batch},)"
    assert values.is_floating_point(), f"{what} returned {values.dtype} numbers; they must be real floats"
    assert torch.isfinite(values).all(), f"{what} is not finite: {values.tolist()}"


@contextmanager
def _offline(what: str) -> Iterator[None]:
    """Fail if the block opens a network connection: a run may have no network."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family == getattr(socket, "AF_UNIX", None):
            return connect(self, address)
        raise AssertionError(f"{what} opened a network connection to {address}")

    socket.socket.connect = refuse  # type: ignore[method-assign, assignment]  # restored below
    try:
        yield
    finally:
        socket.socket.connect = connect  # type: ignore[method-assign]


CALLS = 4
"""Calls in which a leak must show."""


def frees_memory(call: Callable[[], object], what: str) -> None:
    """Fail if each call leaves a tensor behind; what the first two calls keep, such as a cache, does not count."""
    for _ in range(2):
        call()
    before = _live_tensors()
    for _ in range(CALLS):
        call()
    more = _live_tensors() - before
    assert more < CALLS, f"{what} keeps {more} tensors of {CALLS} calls: memory grows with every step"


def _live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(one), Tensor) for one in gc.get_objects())


def same_in_threads(call: Callable[[Item], Result], items: Sequence[Item]) -> bool:
    """Whether calls from several threads at once give what the same calls give one after another."""
    expected = [call(item) for item in items]
    with ThreadPoolExecutor(len(items)) as pool:
        results = list(pool.map(call, items))
    pairs = zip(expected, results, strict=True)
    return all(
        torch.allclose(one, other, rtol=1e-4, atol=1e-6)
        if isinstance(one, Tensor) and isinstance(other, Tensor)
        else one == other
        for one, other in pairs
    )
