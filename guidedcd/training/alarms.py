"""When a sentinel raises an alarm: a trained reward rises while a held-out judge falls, or the videos drift. No torch.

A reward is a proxy of quality, and optimising it for too long lowers the quality (Goodhart's law; Gao et al. 2023,
Scaling Laws for Reward Model Overoptimization). Judges that train nothing detect this. Checks are compared prompt by
prompt, since all of them sample the same prompts from the same noise.

Legend: P prompts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

import attrs

RISE = 2.0
"""A reward has risen if its mean difference is more than this many standard errors."""
FALL = 3.0
"""A judge has fallen if its mean difference is less than minus this many standard errors, or more where `fall_bound`
requires it. The best earlier check is the best partly by chance, so that this bound is stricter than that of a rise."""
CHANCE = 0.01
"""Probability that any judge of a check seems to have fallen by chance, where differences are normally distributed."""
DRIFT = 0.5
"""A statistic of the videos has drifted if it is this fraction outside of its limits."""
FEWEST = 8
"""With fewer prompts in common, two checks are not compared."""


@attrs.frozen(kw_only=True)
class Check:
    """What one check measured, each a list (P,) with NaN where a value does not apply."""

    step: int
    """The training step, at least 1."""
    rewards: Mapping[str, Sequence[float]]
    """Scores of the trained rewards by name."""
    judges: Mapping[str, Sequence[float]]
    """Scores of the judges by name, with the sign that makes higher better."""
    drift: Mapping[str, Sequence[float]] = attrs.field(factory=dict)
    """Statistics of the videos by name; see `drift`."""


@attrs.frozen(kw_only=True)
class Alarm:
    """A reason for an alarm."""

    rewards: tuple[str, ...]
    """The rewards that rose."""
    against: str
    """The judge that fell, or the statistic that drifted."""
    since: int
    """The step of the check with which the present one is compared."""
    text: str
    """The reason as a sentence."""


def compare(values: Sequence[float], before: Sequence[float]) -> tuple[float, float]:
    """The mean paired difference and its number of standard errors; (0, 0) with fewer than 8 pairs.

    Args:
        values: Values (P,).
        before: Earlier values (P,) of the same prompts.
    """
    pairs = zip(values, before, strict=True)
    differences = [a - b for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
    if len(differences) < FEWEST:
        return 0.0, 0.0
    mean, spread = statistics.fmean(differences), statistics.stdev(differences)
    if spread == 0:
        return mean, math.copysign(math.inf, mean) if mean else 0.0
    return mean, mean / spread * math.sqrt(len(differences))


def fall_bound(judges: int, earlier: int) -> float:
    """How many standard errors a judge must fall.

    Every judge may be compared with every earlier check, and one of many differences is large by chance. The bound is
    Bonferroni's, and at least 3.

    Args:
        judges: Number of judges, at least 1.
        earlier: Number of earlier checks, at least 1.
    """
    return max(FALL, statistics.NormalDist().inv_cdf(1 - CHANCE / (judges * earlier)))


def widened(limits: Mapping[str, tuple[float, float]], first: Check) -> dict[str, tuple[float, float]]:
    """Limits that contain a student's first check as well.

    A student of a few steps has smoother videos than its teacher before any reward has acted. The rewards are not the
    cause of its values at the first check.

    Args:
        limits: Lowest and highest value of each statistic that teacher and data have.
        first: The first check of the run.
    """
    values = {name: average(first.drift.get(name, ())) for name in limits}
    return {
        name: (low, high) if math.isnan(values[name]) else (min(low, values[name]), max(high, values[name]))
        for name, (low, high) in limits.items()
    }


def average(values: Iterable[float]) -> float:
    """The mean of the finite values, NaN without any."""
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else math.nan


def alarms(history: Sequence[Check], limits: Mapping[str, tuple[float, float]]) -> list[Alarm]:
    """The reasons for an alarm at the last check: those that also held at the check before it.

    Args:
        history: All checks in order of their steps.
        limits: Lowest and highest value of each statistic that count as usual; see `widened`.
    """
    if len(history) < 3:
        return []
    before = {alarm.against for alarm in _suspicions(history[:-1], limits)}
    return [alarm for alarm in _suspicions(history, limits) if alarm.against in before]


def _suspicions(history: Sequence[Check], limits: Mapping[str, tuple[float, float]]) -> list[Alarm]:
    """The reasons for an alarm at the last check, whatever held at the one before."""
    *earlier, now = history
    result = []
    bound = fall_bound(max(len(now.judges), 1), len(earlier))
    for judge, values in now.judges.items():
        best = max(earlier, key=lambda check: _order(check.judges.get(judge, ())))
        if judge not in best.judges:
            continue
        fall, errors = compare(values, best.judges[judge])
        risen = _risen(now, best)
        if errors < -bound and risen:
            text = (
                f"{judge} fell by {-fall:.3g} ({-errors:.1f} standard errors) since step {best.step}, "
                f"while {_listed(risen)}"
            )
            result.append(Alarm(rewards=tuple(risen), against=judge, since=best.step, text=text))
    first, risen = earlier[0], _risen(now, earlier[0])
    for name, (low, high) in limits.items() if risen else ():
        value = average(now.drift.get(name, ()))
        if value > high * (1 + DRIFT) or value < low / (1 + DRIFT):
            usual = f"{low:.3g} to {high:.3g} in teacher, data and the first check"
            text = f"{name} is {value:.3g}, and {usual}, while {_listed(risen)}"
            result.append(Alarm(rewards=tuple(risen), against=name, since=first.step, text=text))
    return result


def _risen(now: Check, before: Check) -> dict[str, float]:
    """The rewards that are higher than at an earlier check, with the differences."""
    risen = {}
    for name, values in now.rewards.items():
        if name in before.rewards:
            rise, errors = compare(values, before.rewards[name])
            if errors > RISE:
                risen[name] = rise
    return risen


def _order(values: Sequence[float]) -> float:
    mean = average(values)
    return -math.inf if math.isnan(mean) else mean


def _listed(risen: Mapping[str, float]) -> str:
    """E.g. "hps rose by 0.12 and clip rose by 0.3"."""
    return " and ".join(f"{name} rose by {rise:.3g}" for name, rise in risen.items())
