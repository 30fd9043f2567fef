"""The share of an energy's guided term in the prediction, and what is printed of it."""

from __future__ import annotations

import numpy
import pytest
import torch

from guidedcd.diffusion.guidance import Rule, TeacherStep, moments, noise_factor, strength_from_relative
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.preprocessing.shares import number, percent, share_of

HOW = {
    "strength": 500.0,
    "is_relative": False,
    "fraction": 0.5,
    "omega": 2.5,
    "rule": "eps",
    "noise_factor": "official",
}


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("factor", ["official", "sqrt-one-minus"])
def test_the_share_is_the_one_that_a_relative_strength_sets(prediction, factor):
    """The scale printed for relative 0.3 is the strength that the guided step takes for it, for every prediction."""
    schedule = NoiseSchedule.scaled_linear(prediction=prediction)
    z, o_c, o_u, score = torch.randn(4, 1, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    t, omega = torch.tensor([700]), torch.tensor([2.5])
    step = TeacherStep(z, t, o_c, o_u, omega)
    expected = strength_from_relative(schedule, step, score, torch.tensor([0.3]), Rule("eps", factor))

    rms = score.pow(2).mean().sqrt()[None].numpy()
    how = {**HOW, "noise_factor": factor, "strength": float(expected)}
    share = share_of("toy", numpy.array([0.7]), rms, moments(schedule, step).numpy(), how)

    assert share.example_scale == pytest.approx(float(expected), rel=1e-4)
    assert share.quantiles == pytest.approx((0.3, 0.3, 0.3), rel=1e-4)
    assert noise_factor(schedule, t, factor, z).item() > 0


def test_shares_out_of_range_are_warned_of():
    """Below 1 % and above 200 % of the prediction, and without a gradient, a sentence states what to set."""
    levels, rms = numpy.linspace(0.5, 0.98, 20), numpy.ones(20)
    table = numpy.tile([1.0, 0.0, 0.0, 0.5, 1.0], (20, 1))

    def lines(strength: float, rms=rms, **how) -> list[str]:
        return share_of("toy", levels, rms, table, {**HOW, "strength": strength, **how}).lines()

    assert "warning: energy 'toy' is below 1% of the prediction" in lines(0.002)[1]
    assert "warning: energy 'toy' is above 200% of the prediction" in lines(5)[1]
    assert "has no gradient" in lines(0.3, rms * 0, is_relative=True)[1]
    (line,) = lines(0.5)
    assert line.startswith("toy: 25 % of the prediction on 20 guided draws; ")
    assert line.endswith("--energies.toy.relative 0.3 is about scale 0.60")
    (line,) = lines(0.5, levels)
    assert line.startswith("toy: 18 % of the prediction (13 % to 24 % for 5 to 95 % of 20 guided draws; by noise level")
    assert "about scale" not in lines(0.3, rms * 0)[0]
    assert len(share_of("toy", levels, rms, table, HOW).by_level) == 4
    assert share_of("toy", levels[:0], rms[:0], table[:0], HOW) is None


def test_numbers_have_two_figures():
    """Small, large and usual numbers read without an exponent, up to a million."""
    values = (0.00031, 0.031, 1.44, 16.2, 160.0, 23456.0, 0.0)
    assert [number(value) for value in values] == ["0.00031", "0.031", "1.4", "16", "160", "23,000", "0"]
    assert (percent(1.6), percent(0.0003), number(2.34e7)) == ("160 %", "0.030 %", "2.3e+07")
