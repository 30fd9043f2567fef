"""Student's t over seeds, verdicts, and power."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidedcd.proving import intervals

PRINTED = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 30: 2.042}
"""Two-sided 95 % quantiles of Student's t by degrees of freedom, from a printed table."""


@pytest.mark.parametrize(("df", "printed"), PRINTED.items())
def test_quantiles_are_those_of_printed_tables(df, printed):
    """The quantile of the distribution is the printed one."""
    assert abs(intervals.quantile(0.975, df) - printed) < 6e-4


@given(t=st.floats(-30, 30), df=st.integers(1, 40))
def test_the_distribution_is_symmetric(t, df):
    """P(T <= t) and P(T <= -t) add up to 1, and lie between 0 and 1."""
    below, above = intervals.distribution(t, df), intervals.distribution(-t, df)

    assert math.isclose(below + above, 1, abs_tol=1e-9)
    assert -1e-9 <= below <= 1 + 1e-9


def test_the_distribution_is_that_of_simulated_values():
    """A normal value over the root of a chi-square one is below t as often as the distribution states."""
    random = np.random.default_rng(0)
    for df in (1, 2, 3, 6, 7):
        values = random.standard_normal(40_000) / np.sqrt(random.chisquare(df, 40_000) / df)
        assert abs((values <= 1.3).mean() - intervals.distribution(1.3, df)) < 0.01


@given(
    values=st.lists(st.floats(-5, 5), min_size=2, max_size=8),
    shift=st.floats(-3, 3),
    factor=st.floats(0.1, 4),
)
def test_intervals_follow_their_values(values, shift, factor):
    """An interval is centred at the mean, and moves and grows with the values."""
    one = intervals.over_seeds(values)
    other = intervals.over_seeds([factor * value + shift for value in values])

    assert math.isclose(one.mean, statistics.fmean(values), abs_tol=1e-9)
    assert math.isclose(other.low, factor * one.low + shift, abs_tol=1e-6)
    assert math.isclose(other.high, factor * one.high + shift, abs_tol=1e-6)
    assert math.isclose(one.high - one.mean, one.mean - one.low, abs_tol=1e-6)


def test_the_interval_covers_the_truth_as_often_as_it_states():
    """95 % of the intervals of three normal values contain their mean."""
    random = np.random.default_rng(1)
    samples = [intervals.over_seeds(row) for row in random.standard_normal((2000, 3)).tolist()]

    assert 0.935 < np.mean([one.low < 0 < one.high for one in samples]) < 0.965


@given(values=st.lists(st.floats(-5, 5), min_size=1, max_size=5), bound=st.floats(-5, 5))
def test_opposite_claims_have_opposite_verdicts(values, bound):
    """Where "above the bound" holds, "below the bound" does not, and both are undecided together."""
    one = intervals.over_seeds(values)
    above = intervals.verdict(one, bound, math.inf)
    below = intervals.verdict(one, -math.inf, bound)

    assert (above == intervals.UNDECIDED) == (below == intervals.UNDECIDED)
    assert not (above == below == intervals.HOLDS)
    if above == intervals.HOLDS:
        assert below == intervals.FAILS
    if len(values) == 1:
        assert intervals.UNDECIDED not in (above, below)


def test_a_claim_holds_with_all_of_its_criteria():
    """A claim fails with one criterion, and holds with all of them only."""
    holds, fails, undecided, missing = (
        intervals.HOLDS,
        intervals.FAILS,
        intervals.UNDECIDED,
        intervals.MISSING,
    )

    assert intervals.together([holds, holds]) == holds
    assert intervals.together([holds, undecided]) == undecided
    assert intervals.together([missing, holds]) == missing
    assert intervals.together([fails, missing]) == fails
    assert intervals.together([]) == missing
    assert intervals.verdict(intervals.over_seeds([]), 0, 1) == missing


def test_power_grows_with_the_effect_and_is_the_level_without_one():
    """Power is 2.5 % on one side without an effect, nearly 1 for a large one, and about .8 where theory has it."""
    without, some, large = (intervals.power(effect, 1.0, 3) for effect in (0.0, 3.26, 20.0))

    assert abs(without - 0.025) < 0.005
    assert 0.7 < some < 0.9
    assert large > 0.99
    assert math.isnan(intervals.power(1.0, 1.0, 1))
    assert intervals.power(1.0, 0.0, 3) == 1.0
