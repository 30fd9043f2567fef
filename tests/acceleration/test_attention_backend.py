"""The choice between PyTorch's attention, cuDNN's and FlashAttention 4."""

from __future__ import annotations

import pytest
import torch
from tiny_unet import saved_numbers
from torch.nn import functional as nnf

from guidedcd.acceleration import attention_backend
from guidedcd.errors import GuidedCDError


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
    monkeypatch.setattr(attention_backend, "candidates", lambda width: ["cudnn", "flash"])
    assert attention_backend.fastest(list(torch.randn(3, 2, 2, 5, 8)), 0.4, False) == chosen


def test_flash_attention_takes_part_once_it_is_active(monkeypatch):
    """PyTorch's own FlashAttention is one of its default kernels; another implementation is compared as well."""
    assert attention_backend.candidates(128) == ["cudnn"]
    monkeypatch.setattr(torch.nn.attention, "current_flash_attention_impl", lambda: "FA4", raising=False)
    assert attention_backend.candidates(128) == ["cudnn", "flash"]
    assert attention_backend.candidates(384) == ["math"]  # no fused kernel of wider heads is fast


def test_flash_attention_needs_a_gpu_a_new_pytorch_and_its_package(monkeypatch):
    """Each missing requirement is one clear error, and PyTorch's own kernels stay."""
    with pytest.raises(GuidedCDError, match="needs an NVIDIA GPU; leave it out on 'cpu'"):
        attention_backend.activate("FA4", torch.device("cpu"))

    def missing(name):
        raise ImportError("No module named 'flash_attn'")

    monkeypatch.setattr(torch.nn.attention, "current_flash_attention_impl", lambda: None, raising=False)
    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", missing, raising=False)
    restored = []
    monkeypatch.setattr(torch.nn.attention, "restore_flash_attention_impl", lambda: restored.append(1), raising=False)
    with pytest.raises(GuidedCDError, match="does not work with PyTorch .*No module named 'flash_attn'"):
        attention_backend.activate("FA4", torch.device("cuda"))
    assert restored == [1]
    monkeypatch.delattr(torch.nn.attention, "activate_flash_attention_impl")
    with pytest.raises(GuidedCDError, match="needs PyTorch 2.11 or newer"):
        attention_backend.activate("FA4", torch.device("cuda"))


@pytest.mark.gpu
def test_flash_attention_4_is_as_exact_as_the_usual_kernel():
    """Where its package is installed, values and gradients have bfloat16's error against float32."""
    pytest.importorskip("flash_attn.cute")
    if torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("FlashAttention 4 needs a Hopper or Blackwell GPU")
    torch.manual_seed(0)
    leaves = list(torch.randn(3, 1, 500, 4, 128, device="cuda"))
    q, k, v = (x.transpose(1, 2).requires_grad_() for x in leaves)

    def values(*tensors):
        out = nnf.scaled_dot_product_attention(*tensors)
        return out, *torch.autograd.grad(out, tensors, torch.ones_like(out))

    exact = values(q, k, v)
    narrow = [x.detach().bfloat16().requires_grad_() for x in (q, k, v)]
    try:
        attention_backend.activate("FA4", q.device)
        with attention_backend.first("flash"):
            outputs = values(*narrow)
    finally:
        torch.nn.attention.restore_flash_attention_impl()
    for output, reference in zip(outputs, exact, strict=True):
        assert (output.float() - reference).norm() < 1e-2 * reference.norm()
