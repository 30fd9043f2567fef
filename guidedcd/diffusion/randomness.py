"""The random streams of a run: functions of its seed, the same on every machine and after every resume.

A stream is a generator keyed by (seed, offset of the stream + number). No number depends on what was drawn before it:
stores keep seeds instead of noise, and a resumed run repeats an uninterrupted one.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from guidedcd.errors import GuidedCDError, shortened
from guidedcd.files import digest

LARGEST_SEED = 2**63 - 1
"""The largest seed that files, torch and numpy can store."""


def check_seed(seed: int, name: str = "--seed") -> int:
    """Return the seed if it is valid.

    Args:
        seed: Any whole number.
        name: Its name in the error message.

    Raises:
        GuidedCDError: It is negative or too large.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise GuidedCDError(f"{name} must be a whole number from 0 to 2^63 - 1, not {shortened(seed, 40)}.")
    return seed


class Stream(enum.IntEnum):
    """The random streams of a run; the value is the number of the stream's first key."""

    DRAW_NOISE = 0
    """Noise of a stored draw, by clip seed and draw."""
    REFERENCE_NOISE = 2**31
    """Noise of a draw's single-step reference: the draw's own noise would make the energy exactly zero."""
    SOLVER_INDEX = 2**32
    """Where the draws of a clip lie on the solver's grid, by clip seed."""
    GUIDANCE = 2**33
    """Guidance and energy strengths of a batch, by run seed and number of the batch."""
    EPOCH_ORDER = 2**34
    """The order of the draws in an epoch, by run seed and number of the epoch."""
    ROLLOUT_PROMPTS = 2**35
    """Which prompts the student samples for its rewards, by run seed and number of the batch."""
    ROLLOUTS = 2**36
    """Everything else of these samples, by run seed and number of the batch."""
    SAMPLING = 2**48
    """Noise of finished videos, which no student was trained on, by video seed and draw."""


def random_stream(stream: Stream, seed: int, number: int = 0) -> numpy.random.Generator:
    """A Philox generator with the key (seed, stream + number).

    Args:
        stream: The purpose of the numbers.
        seed: Seed of the run, of a clip or of a video, in [0, 2^64).
        number: Number of the draw, batch or epoch, at least 0 and less than the distance to the next stream.
    """
    key = numpy.array([seed, stream + number], dtype=numpy.uint64)
    return numpy.random.Generator(numpy.random.Philox(key=key))


def noise(seed: int, draw: int, shape: Sequence[int], stream: Stream = Stream.DRAW_NOISE) -> Tensor:
    """Standard normal noise of `shape`, float32, on the CPU, from `random_stream(stream, seed, draw)`."""
    return torch.from_numpy(random_stream(stream, seed, draw).standard_normal(tuple(shape), dtype=numpy.float32))


def clip_seed(seed: int, clip: str) -> int:
    """The noise seed of one clip, in [0, 2^32), from the run's seed and the clip's id, whatever the order or shard."""
    return int(digest([seed, clip])[:8], 16)


def reward_generator(seed: int, number: int) -> torch.Generator:
    """The generator for the random frames and crops of rewards in batch `number`, on the CPU."""
    return torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)


def dropout_seed(seed: int, step: int, process: int) -> int:
    """The seed of torch's global generator in a step of one process, in [0, 2^63).

    This is xxHash's mix of three integers as CPython 3.8 and later hash a tuple, written out so that it depends on no
    interpreter.
    """
    mixed = _XX5
    for value in (seed, step, process):
        mixed = (mixed + value % (2**61 - 1) * _XX2) % 2**64
        mixed = (mixed << 31 | mixed >> 33) % 2**64
        mixed = mixed * _XX1 % 2**64
    mixed = (mixed + (3 ^ _XX5 ^ 3527539)) % 2**64
    return (1546275796 if mixed == 2**64 - 1 else mixed) % 2**63


_XX1, _XX2, _XX5 = 11400714785074694791, 14029467366897019727, 2870177450012600261
"""xxHash's primes."""
