"""Means with 95 % intervals by the bootstrap over prompts. No torch.

Legend: P prompts. The seeds of a prompt are averaged first, since they are repetitions and no independent prompts.
Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13 (percentile intervals).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

RESAMPLES = 4000
LEVEL = 0.95
FEWEST = 8
"""Estimates from fewer prompts are written without an interval, as resamples of few values are too similar."""


@attrs.frozen
class Estimate:
    """The mean of `n` prompts and its interval; all NaN without prompts."""

    mean: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float | int | None]:
        """JSON values, with None in place of NaN and of the limits for fewer than `FEWEST` prompts."""
        limits = (self.low, self.high) if self.n >= FEWEST else (math.nan, math.nan)
        numbers = dict(zip(("mean", "low", "high"), (self.mean, *limits), strict=True))
        return {**{k: None if math.isnan(v) else round(v, 6) for k, v in numbers.items()}, "n": self.n}

    @property
    def certain(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def estimate(values: Sequence[float], *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0) -> Estimate:
    """Mean of `values` (P,) and its percentile bootstrap interval, without values that are NaN.

    The interval of equal values has no width, which with few prompts does not prove certainty.
    """
    defined = np.asarray([v for v in values if not math.isnan(v)], dtype=np.float64)
    if not len(defined):
        return Estimate(math.nan, math.nan, math.nan, 0)
    random = np.random.default_rng(seed)
    means = np.empty(resamples)
    for start in range(0, resamples, 500):
        count = min(500, resamples - start)
        means[start : start + count] = defined[random.integers(0, len(defined), (count, len(defined)))].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(defined.mean()), float(low), float(high), len(defined))


def paired(values: Sequence[float], baseline: Sequence[float], **options: Any) -> Estimate:
    """Mean and interval of the paired differences `values - baseline`, where both are defined.

    Args:
        values: One value per prompt (P,).
        baseline: Values (P,) of the same prompts in the same order.
        **options: As in `estimate`.

    Raises:
        ValueError: The numbers of values differ.
    """
    if len(values) != len(baseline):
        raise ValueError(f"paired values need the same prompts: {len(values)} and {len(baseline)}")
    return estimate([a - b for a, b in zip(values, baseline, strict=True)], **options)


def over_seeds(values: Sequence[Sequence[float]]) -> list[float]:
    """The mean (P,) of each prompt over its defined values, from `values` (S, P)."""
    table = np.asarray(values, dtype=np.float64)
    defined = ~np.isnan(table)
    total = np.where(defined, table, 0).sum(0)
    return [float(t / k) if k else math.nan for t, k in zip(total, defined.sum(0), strict=True)]
