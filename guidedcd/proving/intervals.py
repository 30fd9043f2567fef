"""Student's t: intervals of a mean over seeds, verdicts, and the power to find an effect. No torch.

Legend: n seeds, df degrees of freedom.
Source: Abramowitz and Stegun, 26.7.3 and 26.7.4 (the distribution for a whole number of degrees of freedom).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import cache

import attrs
import numpy as np

LEVEL = 0.95
HOLDS, FAILS, UNDECIDED, MISSING = "holds", "does not hold", "undecided", "not run"
"""The verdicts."""


@attrs.frozen(kw_only=True)
class SeedEstimate:
    """The mean of n values, its standard error and its interval; error and interval are NaN for one value."""

    mean: float
    error: float
    low: float
    high: float
    n: int


def over_seeds(values: Sequence[float], level: float = LEVEL) -> SeedEstimate:
    """The mean of the values of n seeds, with its standard error and t interval."""
    n = len(values)
    mean = statistics.fmean(values) if n else math.nan
    if n < 2:
        return SeedEstimate(mean=mean, error=math.nan, low=math.nan, high=math.nan, n=n)
    error = statistics.stdev(values) / math.sqrt(n)
    half = quantile((1 + level) / 2, n - 1) * error
    return SeedEstimate(mean=mean, error=error, low=mean - half, high=mean + half, n=n)


def verdict(estimate: SeedEstimate, low: float, high: float) -> str:
    """Whether a quantity lies above `low` and below `high`: by its interval, or by one value alone."""
    if not estimate.n or math.isnan(estimate.mean):
        return MISSING
    least, most = (estimate.mean,) * 2 if estimate.n == 1 else (estimate.low, estimate.high)
    if low < least and most < high:
        return HOLDS
    return FAILS if most <= low or least >= high else UNDECIDED


def together(verdicts: Sequence[str]) -> str:
    """The verdict on several criteria that must all hold."""
    for worst in (FAILS, MISSING, UNDECIDED):
        if worst in verdicts:
            return worst
    return HOLDS if verdicts else MISSING


def distribution(t: float, df: int) -> float:
    """P(T <= t) for Student's t with `df` degrees of freedom."""
    angle = math.atan(t / math.sqrt(df))
    cosine, sine = math.cos(angle), math.sin(angle)
    term, total = (cosine, cosine) if df % 2 else (1.0, 1.0)
    for k in range(3 if df % 2 else 2, df - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    odd = 2 / math.pi * (angle + (sine * total if df > 1 else 0.0))
    return (1 + (odd if df % 2 else sine * total)) / 2


@cache
def quantile(p: float, df: int) -> float:
    """The p-quantile of Student's t with `df` degrees of freedom, 0.5 <= p < 1, by bisection."""
    low, high = 0.0, 1.0
    while distribution(high, df) < p:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if distribution(middle, df) < p else (low, middle)
    return (low + high) / 2


def power(effect: float, deviation: float, n: int, *, level: float = LEVEL, draws: int = 20_000) -> float:
    """The probability that the interval of n seeds excludes 0 on the side of `effect`, by simulation.

    Args:
        effect: The true mean of the differences.
        deviation: Their standard deviation over seeds.
        n: Number of seeds, at least 2.
        level: That of the interval.
        draws: Simulated experiments, always the same ones.
    """
    if n < 2 or math.isnan(effect) or math.isnan(deviation):
        return math.nan
    if not deviation:
        return float(effect != 0)
    random = np.random.default_rng(0)
    samples = abs(effect) + deviation * random.standard_normal((draws, n))
    half = quantile((1 + level) / 2, n - 1) * samples.std(1, ddof=1) / math.sqrt(n)
    return float((samples.mean(1) - half > 0).mean())
