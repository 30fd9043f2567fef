"""When checks of a sentinel raise an alarm."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidedcd.training.alarms import CHANCE, Check, alarms, compare, fall_bound, widened

PROMPTS = 16


def check(step: int, reward: float, judge: float, **drift: float) -> Check:
    """A check with given means and a spread over prompts of 0.1."""
    noise = random.Random(step)

    def values(mean: float) -> list[float]:
        return [mean + noise.gauss(0, 0.1) for _ in range(PROMPTS)]

    constant = {name: [value] * PROMPTS for name, value in drift.items()}
    return Check(step=step, rewards={"hps": values(reward)}, judges={"whole": values(judge)}, drift=constant)


def test_an_alarm_needs_a_rise_a_fall_and_two_checks():
    """A judge that falls while a reward rises is an alarm at the second such check, and names both."""
    history = [check(10, 0.0, 0.5), check(20, 0.5, 1.0), check(30, 1.0, 0.5)]
    assert alarms(history, {}) == []
    (alarm,) = alarms([*history, check(40, 1.5, 0.4)], {})
    assert (alarm.rewards, alarm.against, alarm.since) == (("hps",), "whole", 20)
    assert "whole fell by" in alarm.text and "since step 20" in alarm.text and "hps rose by" in alarm.text


def test_no_alarm_where_nothing_is_over_optimised():
    """A judge that rises too, a reward that does not rise, and a recovery between two checks are no alarms."""
    both_rise = [check(10 * i, 0.2 * i, 0.2 * i) for i in range(1, 6)]
    no_rise = [check(10, 1.0, 1.0), check(20, 1.0, 0.2), check(30, 1.0, 0.2)]
    recovered = [check(10, 0.0, 1.0), check(20, 1.0, 0.2), check(30, 1.5, 1.0)]
    assert alarms(both_rise, {}) == alarms(no_rise, {}) == alarms(recovered, {}) == []


def test_videos_that_drift_are_an_alarm():
    """A statistic far outside of teacher and data is an alarm, and one within half of their range is not."""
    limits = {"saturation": (0.2, 0.4)}
    history = [check(10 * i, i, 1.0, saturation=value) for i, value in enumerate((0.3, 0.61, 0.62), 1)]
    (alarm,) = alarms(history, limits)
    assert alarm.against == "saturation" and "0.62" in alarm.text and "0.2 to 0.4" in alarm.text
    history = [check(10 * i, i, 1.0, saturation=value) for i, value in enumerate((0.3, 0.55, 0.14), 1)]
    assert alarms(history, limits) == []


def test_what_the_student_has_at_first_is_no_drift():
    """Limits widened by the first check admit what it has; a statistic far beyond it is still an alarm."""
    limits = {"flicker": (0.06, 0.08), "saturation": (0.2, 0.4)}
    history = [check(10 * i, i, 1.0, flicker=value) for i, value in enumerate((0.045, 0.038, 0.039), 1)]
    assert [alarm.against for alarm in alarms(history, limits)] == ["flicker"]
    wider = widened(limits, history[0])
    assert wider == {"flicker": (pytest.approx(0.045), 0.08), "saturation": (0.2, 0.4)}
    assert alarms(history, wider) == []
    history = [check(10 * i, i, 1.0, flicker=value) for i, value in enumerate((0.045, 0.02, 0.02), 1)]
    assert [alarm.against for alarm in alarms(history, wider)] == ["flicker"]


@given(st.integers(1, 40), st.integers(1, 200))
def test_chance_falls_stay_rare_with_many_judges(judges, earlier):
    """With independent normal differences, all comparisons together exceed the bound with at most the stated chance."""
    tail = 1 - statistics.NormalDist().cdf(fall_bound(judges, earlier))
    assert judges * earlier * tail <= CHANCE * (1 + 1e-6) or fall_bound(judges, earlier) == 3.0
    assert fall_bound(judges, earlier) >= 3.0


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=8, max_size=40))
def test_a_comparison_is_the_paired_t_statistic(pairs):
    """Mean difference and standard errors are those of the paired t statistic, and change sign with the order."""
    values, before = (list(one) for one in zip(*pairs, strict=True))
    differences = [a - b for a, b in pairs]
    mean, errors = compare(values, before)
    assert mean == pytest.approx(statistics.fmean(differences), abs=1e-12)
    if (spread := statistics.stdev(differences)) > 1e-6:
        assert errors == pytest.approx(mean / (spread / math.sqrt(len(pairs))), rel=1e-9, abs=1e-9)
    other, reversed_errors = compare(before, values)
    assert (other, reversed_errors) == (pytest.approx(-mean), pytest.approx(-errors))


def test_few_values_are_not_compared():
    """With fewer than 8 prompts that have both values there is no difference, and equal ones are no rise."""
    assert compare([1.0] * 7, [0.0] * 7) == (0.0, 0.0)
    assert compare([1.0] * 7 + [math.nan] * 9, [0.0] * 16) == (0.0, 0.0)
    assert compare([1.0] * 8, [1.0] * 8) == (0.0, 0.0)
    assert compare([2.0] * 8, [1.0] * 8) == (1.0, math.inf)
