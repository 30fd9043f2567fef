"""The choice between PyTorch's attention, cuDNN's and FlashAttention 4."""

from __future__ import annotations

import pytest
import torch
from tiny_unet import saved_numbers
from torch.nn import functional as nnf

from guidedcd.acceleration import attention_backend

SIZES = ((9000, 128), (6240, 384), (9000, 384))
"""Tokens and widths of heads: usual, wide, and wide in a long video."""


def test_attention_kernels_are_timed_once_per_size(monkeypatch):
    """Kernels are timed at a size's first call, with and without gradients, and results stay the same."""
    sizes, stock = [], nnf.scaled_dot_product_attention
    monkeypatch.setattr(attention_backend, "_FASTEST", {})
    monkeypatch.setattr(attention_backend, "tries", lambda q: True)
    monkeypatch.setattr(
        attention_backend, "fastest", lambda tensors, *how: sizes.append((*tensors[0].shape, how[1])) or "cudnn"
    )
    for length, graded in ((5, False), (5, False), (7, False), (5, True), (5, True)):
        q, k, v = torch.randn(3, 2, 2, length, 8).requires_grad_(graded)
        assert torch.equal(attention_backend.attention(q, k, v, 0.4), stock(q, k, v, scale=0.4))

    assert sizes == [(2, 2, 5, 8, False), (2, 2, 7, 8, False), (2, 2, 5, 8, True)]


@pytest.mark.parametrize("graded", [False, True])
def test_timing_attention_saves_nothing(monkeypatch, graded):
    """Timing saves no tensors for a surrounding checkpoint, and a kernel with wrong results is not used."""
    monkeypatch.setattr(attention_backend, "_FASTEST", {})
    monkeypatch.setattr(attention_backend, "tries", lambda q: True)
    q, k, v = torch.randn(3, 2, 2, 5, 8).requires_grad_(graded)
    saved = saved_numbers(lambda: attention_backend.attention(q, k, v, 0.4))
    assert saved == (saved_numbers(lambda: nnf.scaled_dot_product_attention(q, k, v, scale=0.4)) if graded else 0)
    assert len(attention_backend._FASTEST) == 1

    tensors = [x.detach() for x in (q, k, v)]
    clock = iter([2.0, 1.0] * 2)
    monkeypatch.setattr(attention_backend, "_seconds", lambda run, device: next(clock))
    assert attention_backend.fastest(tensors, 0.4, graded) == "cudnn"
    outputs = iter([torch.ones(2, 2, 5, 8), torch.zeros(2, 2, 5, 8)])
    monkeypatch.setattr(nnf, "scaled_dot_product_attention", lambda *a, **k: next(outputs).requires_grad_(graded))
    monkeypatch.setattr(torch.autograd, "grad", lambda *a: None)
    assert attention_backend.fastest(tensors, 0.4, graded) == attention_backend.USUAL


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [((2.0, 1.0, 0.5), "flash"), ((2.0, 0.5, 1.0), "cudnn"), ((1.0, 0.99, 0.98), "usual"), ((1.0, 2.0, 0.9), "flash")],
)
def test_the_fastest_of_three_kernels_is_chosen(monkeypatch, seconds, chosen):
    """PyTorch's own order stays unless another one is faster by the margin."""
    clock = iter(seconds)
    monkeypatch.setattr(attention_backend, "_seconds", lambda run, device: next(clock))
    monkeypatch.setattr(attention_backend, "candidates", lambda q, graded: ["cudnn", "flash"])
    assert attention_backend.fastest(list(torch.randn(3, 2, 2, 5, 8)), 0.4, False) == chosen


def test_the_kernels_that_are_compared():
    """cuDNN's for usual heads; products of matrices for wider ones, whose gradient keeps too much for long videos."""
    usual, wide, long = (torch.empty(1, 2, tokens, width, device="meta") for tokens, width in SIZES)
    assert attention_backend.candidates(usual, True) == ["cudnn"]
    assert attention_backend.candidates(wide, True) == attention_backend.candidates(long, False) == ["math"]
    assert attention_backend.candidates(long, True) == []


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, TypeError])
def test_a_kernel_that_fails_does_not_take_part(monkeypatch, error):
    """Whatever a kernel raises, PyTorch's own order stays."""

    def first(order):
        raise error("no kernel for this size")

    monkeypatch.setattr(attention_backend, "first", first)
    assert attention_backend.fastest(list(torch.randn(3, 2, 2, 5, 8)), 0.4, False) == attention_backend.USUAL
