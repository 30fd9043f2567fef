"""The choice between PyTorch's and cuDNN's attention."""

from __future__ import annotations

import pytest
import torch
from tiny_unet import saved_numbers
from torch.nn import functional as nnf

from guidedcd.acceleration import attention_backend


def test_attention_kernels_are_timed_once_per_size(monkeypatch):
    """Kernels are timed at a size's first call, with and without gradients, and results stay the same."""
    sizes, stock = [], nnf.scaled_dot_product_attention
    monkeypatch.setattr(attention_backend, "_FASTER", {})
    monkeypatch.setattr(attention_backend, "tries", lambda q: True)
    monkeypatch.setattr(
        attention_backend, "is_faster", lambda tensors, *how: sizes.append((*tensors[0].shape, how[1])) or True
    )
    for length, graded in ((5, False), (5, False), (7, False), (5, True), (5, True)):
        q, k, v = torch.randn(3, 2, 2, length, 8).requires_grad_(graded)
        assert torch.equal(attention_backend.attention(q, k, v, 0.4), stock(q, k, v, scale=0.4))

    assert sizes == [(2, 2, 5, 8, False), (2, 2, 7, 8, False), (2, 2, 5, 8, True)]


@pytest.mark.parametrize("graded", [False, True])
def test_timing_attention_saves_nothing(monkeypatch, graded):
    """Timing saves no tensors for a surrounding checkpoint, and a kernel with wrong results is not used."""
    monkeypatch.setattr(attention_backend, "_FASTER", {})
    monkeypatch.setattr(attention_backend, "tries", lambda q: True)
    q, k, v = torch.randn(3, 2, 2, 5, 8).requires_grad_(graded)
    saved = saved_numbers(lambda: attention_backend.attention(q, k, v, 0.4))
    assert saved == (saved_numbers(lambda: nnf.scaled_dot_product_attention(q, k, v, scale=0.4)) if graded else 0)
    assert len(attention_backend._FASTER) == 1

    tensors = [x.detach() for x in (q, k, v)]
    clock = iter([2.0, 1.0] * 2)
    monkeypatch.setattr(attention_backend, "_seconds", lambda run, device: next(clock))
    assert attention_backend.is_faster(tensors, 0.4, graded)
    outputs = iter([torch.ones(2, 2, 5, 8), torch.zeros(2, 2, 5, 8)])
    monkeypatch.setattr(nnf, "scaled_dot_product_attention", lambda *a, **k: next(outputs).requires_grad_(graded))
    monkeypatch.setattr(torch.autograd, "grad", lambda *a: None)
    assert not attention_backend.is_faster(tensors, 0.4, graded)
