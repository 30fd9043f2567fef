"""The kernels of tokens and of attention over frames against PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as nnf


def test_values_without_gradients_are_the_same(kernels, device):
    """Without gradients every function gives the same values and builds no graph."""
    x, other, video = (torch.randn(shape, device=device) for shape in ((2, 6, 16), (2, 6, 16), (1, 4, 3, 48)))
    w, b = torch.randn(2, 16, device=device)
    calls = (
        (kernels.GroupNorm, x, w, b, other[:, 0], 4, 1e-5, True, torch.float32),
        (kernels.LayerNorm, x, other, w, b, 1e-5, torch.float32),
        (kernels.LayerNorm, x, None, w, b, 1e-5, torch.float32),
        (kernels.Geglu, x, b),
        (kernels.Geglu, x, None),
        (kernels.Residual, x, other, b),
        (kernels.FrameAttention, video, 2, 0.3),
        (kernels.FrameAttention, *video.chunk(3, dim=-1), 2, 0.3),
    )
    for function, first, *rest in calls:
        graded = function.of(first.clone().requires_grad_(True), *rest)
        with torch.no_grad():
            ungraded = function.of(first.clone().requires_grad_(True), *rest)
        graded, ungraded = ([y] if isinstance(y, Tensor) else y for y in (graded, ungraded))
        for value, ungraded_value in zip(graded, ungraded, strict=True):
            assert value.requires_grad and torch.equal(value, ungraded_value)
            assert ungraded_value.grad_fn is None


def test_the_layer_norm_kernel_is_layer_norm(kernels, compare):
    """The sum, its norm and both gradients agree with PyTorch, with and without a summand."""
    x, delta, w, b = torch.randn(37, 24), torch.randn(37, 24), torch.randn(24), torch.randn(24)
    compare(
        lambda x, d, w, b: kernels.LayerNorm.apply(x, d, w, b, 1e-5, torch.float32),
        lambda x, d, w, b: (x + d, nnf.layer_norm(x + d, (24,), w, b, 1e-5)),
        x, delta, w, b,
    )  # fmt: skip
    compare(
        lambda x, w, b: kernels.LayerNorm.apply(x, None, w, b, 1e-5, torch.float32)[1],
        lambda x, w, b: nnf.layer_norm(x, (24,), w, b, 1e-5),
        x, w, b,
    )  # fmt: skip


def test_elementwise_kernels_agree_with_pytorch(kernels, compare):
    """Gated GELU, and a sum of two tensors and a bias, agree with PyTorch in values and gradients."""

    def gated(x, b=0):
        value, gate = (x + b).chunk(2, dim=-1)
        return value * nnf.gelu(gate)

    compare(lambda x: kernels.Geglu.apply(x, None), gated, torch.randn(9, 80))
    compare(kernels.Geglu.apply, gated, torch.randn(3, 7, 80), torch.randn(80))
    compare(kernels.Residual.apply, lambda x, y, b: x + y + b, *torch.randn(2, 3, 5, 20), torch.randn(20))


@pytest.mark.parametrize(("frames", "heads", "width"), [(5, 2, 8), (16, 1, 64)])
def test_the_frame_attention_kernel_is_attention(kernels, compare, frames, heads, width):
    """Values and registered gradients agree with PyTorch for any number of frames and channels."""
    from guidedcd.acceleration.kernels.operators import frame_attention, packed_frame_attention

    def reference(*tensors):
        q, k, v = (x.transpose(1, 2).unflatten(-1, (heads, -1)).transpose(2, 3) for x in tensors)
        out = (q @ k.transpose(-1, -2) * 0.3).softmax(-1) @ v
        return out.transpose(2, 3).flatten(3).transpose(1, 2)

    tensors = torch.randn(3, 2, frames, 3, heads * width)
    compare(lambda q, k, v: frame_attention(q, k, v, heads, 0.3), reference, *tensors)
    packed = torch.cat([*tensors], dim=-1)
    compare(lambda x: packed_frame_attention(x, heads, 0.3), lambda x: reference(*x.chunk(3, dim=-1)), packed)
