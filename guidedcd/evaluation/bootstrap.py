"""Means with 95 % intervals by the bootstrap over prompts. No torch.

Legend: P prompts, R resamples. A prompt's seeds are averaged first: they are repetitions, not independent prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

RESAMPLES = 4000
LEVEL = 0.95


@attrs.frozen
class Estimate:
    """A mean and its interval; `n` prompts went into it. All NaN when there was none."""

    mean: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float | int | None]:
        """As JSON, which has no NaN."""
        rounded = {k: None if math.isnan(v) else round(v, 6) for k, v in attrs.asdict(self).items() if k != "n"}
        return {**rounded, "n": self.n}

    @property
    def certain(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def estimate(values: Sequence[float], *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0) -> Estimate:
    """Mean of `values` (P,) and its percentile bootstrap interval; values that are NaN do not apply and are left out.

    The interval of values that are all the same has no width: with few prompts that is no proof of certainty.
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


def paired(ours: Sequence[float], theirs: Sequence[float], **options: Any) -> Estimate:
    """Mean and interval of `ours - theirs`, prompt by prompt; a prompt counts where both are defined.

    Args:
        ours: Values (P,).
        theirs: Values (P,) of the same prompts in the same order.
        **options: As of `estimate`.

    Raises:
        ValueError: They are not of the same prompts.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"paired values need the same prompts: {len(ours)} and {len(theirs)}")
    return estimate([a - b for a, b in zip(ours, theirs, strict=True)], **options)


def over_seeds(values: Sequence[Sequence[float]]) -> list[float]:
    """Each prompt's mean (P,) over the seeds in which it has a value, from `values` (seeds, P)."""
    table = np.asarray(values, dtype=np.float64)
    defined = ~np.isnan(table)
    total = np.where(defined, table, 0).sum(0)
    return [float(t / k) if k else math.nan for t, k in zip(total, defined.sum(0), strict=True)]
