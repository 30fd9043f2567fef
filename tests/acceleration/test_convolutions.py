"""Convolutions with frozen weights: what they save, and their gradients."""

from __future__ import annotations

import copy

import hypothesis
import torch
from hypothesis import strategies as st
from tiny_unet import saved_numbers, tiny_unet
from torch.nn import functional as nnf

from guidedcd import acceleration
from guidedcd.acceleration import convolutions


def test_a_frozen_convolution_saves_no_input():
    """With frozen weights a block's gradient is the stock one, and the inputs of its convolutions are not saved."""
    stock = tiny_unet()
    stock, x = stock.down_blocks[0].temp_convs[0].requires_grad_(False), torch.randn(6, 8, 4, 6).double()
    fast = acceleration.speed_up(copy.deepcopy(stock))
    expected = torch.autograd.grad(stock(x.requires_grad_(True), 3).square().sum(), x)[0]
    actual = torch.autograd.grad(fast(x, 3).square().sum(), x)[0]
    frozen = saved_numbers(lambda: fast(x, 3))
    learned = saved_numbers(lambda: fast.requires_grad_(True)(x, 3))

    assert (actual - expected).abs().max() < 1e-9 * expected.abs().max()
    assert learned - frozen >= 4 * x.numel()


PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@hypothesis.given(
    kernel=PAIRS,
    stride=PAIRS,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    groups=st.sampled_from([1, 2]),
)
def test_the_gradient_of_a_frozen_convolution(kernel, stride, padding, dilation, size, groups):
    """The gradient is autograd's for any stride, padding, dilation and groups, and for unused pixels."""
    x = torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 4 // groups, *kernel, dtype=torch.float64)
    how = stride, padding, dilation, groups
    expected = nnf.conv2d(x, weight, None, *how)
    grad = torch.randn_like(expected)
    actual = convolutions.FrozenConvolution.apply(x, weight, None, how)

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, grad)[0] for y in (actual, expected)))
