"""Means with intervals: against exact distributions, paired, and averaged over seeds."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from guidedcd.evaluation.bootstrap import estimate, over_seeds, paired


def test_the_interval_is_the_bootstrap_distribution_itself():
    """For three values the interval agrees with all 27 equally likely resamples."""
    values = [0.0, 1.0, 5.0]
    means = sorted(np.mean(some) for some in itertools.product(values, repeat=3))
    interval = estimate(values, resamples=100_000)

    assert interval.mean == pytest.approx(2.0)
    assert interval.low == pytest.approx(means[int(0.025 * 27)], abs=0.34)
    assert interval.high == pytest.approx(means[math.ceil(0.975 * 27) - 1], abs=0.34)


def test_the_interval_of_many_values_is_the_normal_one():
    """For 400 normal values it is mean ± 1.96 standard errors, within a tenth of an error."""
    values = np.random.default_rng(0).normal(3, 2, 400)
    error = values.std() / 20
    interval = estimate(values)

    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_the_interval_contains_the_truth_in_95_percent():
    """Of 200 samples of 40 prompts, about 95 % of the intervals contain the true mean."""
    random = np.random.default_rng(1)
    hits = 0
    for number in range(200):
        interval = estimate(random.normal(0.5, 1, 40), resamples=600, seed=number)
        hits += interval.low <= 0.5 <= interval.high

    assert 0.88 <= hits / 200 <= 0.98


def test_pairing_removes_what_prompts_have_in_common():
    """Easy and hard prompts differ much, student and teacher by 0.1: paired, the difference is certain."""
    difficulty = np.random.default_rng(2).normal(0, 5, 30)
    baseline, values = difficulty, difficulty + 0.1
    interval = paired(values, baseline)

    assert (interval.mean, interval.n) == (pytest.approx(0.1), 30)
    assert interval.certain
    assert not estimate(values).certain


def test_values_that_do_not_apply_are_left_out_of_both_sides():
    """NaN on either side drops the prompt; with none left there is no estimate."""
    nan = math.nan
    interval = paired([1.0, nan, 3.0, 5.0], [0.0, 7.0, nan, 2.0])

    assert (interval.mean, interval.n) == (2.0, 2)
    assert paired([nan], [1.0]).to_dict() == {"mean": None, "low": None, "high": None, "n": 0}
    with pytest.raises(ValueError, match="same prompts"):
        paired([1.0], [1.0, 2.0])


def test_seeds_are_repetitions_not_prompts():
    """A prompt's seeds are averaged, those without a value left out, before prompts are resampled."""
    interval = over_seeds([[0.0, 1.0, math.nan], [1.0, 1.0, math.nan]])

    assert interval[:2] == [0.5, 1.0]
    assert math.isnan(interval[2])


def test_few_prompts_have_no_interval():
    """Below eight prompts the file has a mean alone; from eight on it has the limits too."""
    assert estimate([1.0] * 7).to_dict() == {"mean": 1.0, "low": None, "high": None, "n": 7}
    assert estimate([1.0] * 8).to_dict() == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 8}
