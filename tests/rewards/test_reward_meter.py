"""What each reward costs and contributes: shares of the gradient on the frames, and times of parts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guidedcd.devices import Stopwatch
from guidedcd.rewards.meter import RewardMeter

factors = st.lists(st.floats(-4, 4).filter(lambda x: abs(x) > 1e-2), min_size=1, max_size=4)


@given(factors)
def test_shares_are_those_of_the_norms(numbers):
    """Rewards that are linear in the frames have shares proportional to their slopes, and the shares add up to 1."""
    frames, meter = torch.rand(2, 3, 3, 4, 4, dtype=torch.float64, requires_grad=True), RewardMeter()
    sum(number * meter.watch(str(i), frames).sum() for i, number in enumerate(numbers)).backward()
    total = sum(map(abs, numbers))

    shares = meter.shares()
    assert {name: float(one) for name, one in shares.items()} == pytest.approx(
        {str(i): abs(number) / total for i, number in enumerate(numbers)}, rel=1e-4
    )
    assert meter.shares() == {}


def test_watching_changes_no_gradient():
    """The gradient is the same to the bit with and without the hooks."""
    gradients = []
    for meter in (RewardMeter(), None):
        frames = torch.linspace(-1, 1, 96).view(1, 2, 3, 4, 4).requires_grad_()
        watched = [frames if meter is None else meter.watch(name, frames) for name in "ab"]
        (watched[0].sin().sum() + watched[1].exp().mean()).backward()
        gradients.append(frames.grad)

    assert torch.equal(*gradients)


def test_frames_without_a_gradient_have_no_share():
    """A reward of weight 0 reads frames without a gradient, and is not among the shares."""
    meter = RewardMeter()

    assert not meter.watch("a", torch.rand(1, 1, 3, 2, 2)).requires_grad
    assert meter.shares() == {}


def test_parts_of_one_name_are_summed():
    """A stopwatch adds up the parts of one name, measures nothing while it is off, and begins anew."""
    stopwatch = Stopwatch(torch.device("cpu"))
    with stopwatch.part("off"):
        pass
    stopwatch.is_on = True
    for _ in range(2):
        with stopwatch.part("outer"), stopwatch.part("inner"):
            torch.rand(64, 64).inverse()
    numbers = stopwatch.take()()

    assert set(numbers) == {"seconds/outer", "seconds/inner"}
    assert numbers["seconds/outer"] >= numbers["seconds/inner"] > 0
    assert stopwatch.take()() == {}
