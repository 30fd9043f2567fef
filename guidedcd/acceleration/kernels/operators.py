"""The kernels as operators that compiled layers call: group norms, and attention over frames.

The compiler's own reductions go group by group, a few channels of each token at a time; the kernels read whole
channels-last rows. Every operator has a shape function for the compiler and a gradient. The kernels, which need
Triton, are imported at the first call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def differentiate(operator: Any, backward: Callable[..., Any], tensors: int) -> None:
    """Register the gradient of an operator with one output.

    Args:
        operator: Made by `torch.library.custom_op`; its first arguments are tensors, the others numbers.
        backward: Called with the output's gradient and the operator's arguments; returns one gradient per tensor.
        tensors: How many of the operator's arguments are tensors.
    """

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:tensors])
        ctx.numbers = inputs[tensors:]

    def gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        result = backward(grad.contiguous(), *ctx.saved_tensors, *ctx.numbers)
        return *((result,) if tensors == 1 else result), *[None] * len(ctx.numbers)

    operator.register_autograd(gradients, setup_context=keep)


@torch.library.custom_op("guidedcd::group_norm", mutates_args=())
def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Group norm of `x` + `shift`, (N, L, C) and (N or 1, C), then SiLU; and mean and 1/std (N, G, 2)."""
    from guidedcd.acceleration.kernels import group_norm as kernels

    return kernels.group_norm(x, weight, bias, groups, eps, silu, shift, dtype)


@group_norm.register_fake
def _(x, weight, bias, shift, groups, eps, silu, dtype):
    stats = torch.empty(x.shape[0], groups, 2, device=x.device, dtype=torch.float32)
    return torch.empty(x.shape, device=x.device, dtype=dtype), stats


@torch.library.custom_op("guidedcd::group_norm_backward", mutates_args=())
def group_norm_backward(
    grad: Tensor, x: Tensor, stats: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, groups: int, silu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (N, L, C), weight and bias (C,), and shift (N, C), which is empty without a shift."""
    from guidedcd.acceleration.kernels import group_norm as kernels

    dx, sums, dshift = kernels.group_norm_backward(grad, x.contiguous(), stats, weight, bias, groups, silu, shift)
    assert sums is not None  # weight and bias have gradients by default
    if dshift is None:
        dshift = sums.new_empty(0)
    return dx, sums[0].clone(), sums[1].clone(), dshift  # results of an operator share no memory


@group_norm_backward.register_fake
def _(grad, x, stats, weight, bias, shift, groups, silu):
    n, channels = x.shape[0], x.shape[2]
    shapes = ((channels,), (channels,), (0,) if shift is None else (n, channels))
    sums = (torch.empty(shape, device=x.device, dtype=torch.float32) for shape in shapes)
    return torch.empty(x.shape, device=x.device, dtype=x.dtype), *sums


def shift_gradient(dshift: Tensor | None, shift: Tensor | None) -> Tensor | None:
    """The gradient (N, C) of what was added to x, in the shape and dtype of the shift, (N, C) or (1, C)."""
    return None if dshift is None or shift is None else dshift.sum_to_size(shift.shape).to(shift.dtype)


def _keep_group_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, shift, ctx.groups, _, ctx.silu, _ = inputs
    ctx.save_for_backward(x, weight, bias, output[1], shift)


def _differentiate_group_norm(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, bias, stats, shift = ctx.saved_tensors
    gradients = group_norm_backward(grad.contiguous(), x, stats, weight, bias, shift, ctx.groups, ctx.silu)
    dx, dweight, dbias, dshift = gradients
    return dx, dweight.to(weight.dtype), dbias.to(bias.dtype), shift_gradient(dshift, shift), *[None] * 4


group_norm.register_autograd(_differentiate_group_norm, setup_context=_keep_group_norm)


@torch.library.custom_op("guidedcd::frame_attention", mutates_args=())
def frame_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
    """softmax(q k^T scale) v over the frames of (B, F, P, C)."""
    from guidedcd.acceleration.kernels import forward as kernels

    return kernels.frame_attention(q, k, v, heads, scale)


@frame_attention.register_fake
def _(q, k, v, heads, scale):
    return torch.empty(q.shape, device=q.device, dtype=q.dtype)


@torch.library.custom_op("guidedcd::frame_attention_backward", mutates_args=())
def frame_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    from guidedcd.acceleration.kernels import forward as kernels

    return kernels.frame_attention_backward(grad, q, k, v, heads, scale)


@frame_attention_backward.register_fake
def _(grad, q, k, v, heads, scale):
    return tuple(torch.empty(x.shape, device=x.device, dtype=x.dtype) for x in (q, k, v))


differentiate(frame_attention, frame_attention_backward, tensors=3)


@torch.library.custom_op("guidedcd::packed_frame_attention", mutates_args=())
def packed_frame_attention(qkv: Tensor, heads: int, scale: float) -> Tensor:
    """`frame_attention` of queries, keys and values side by side, (B, F, P, 3 C); nothing is copied."""
    from guidedcd.acceleration.kernels import forward as kernels

    return kernels.packed_frame_attention(qkv, heads, scale)


@packed_frame_attention.register_fake
def _(qkv, heads, scale):
    return torch.empty(*qkv.shape[:-1], qkv.shape[-1] // 3, device=qkv.device, dtype=qkv.dtype)


@torch.library.custom_op("guidedcd::packed_frame_attention_backward", mutates_args=())
def packed_frame_attention_backward(grad: Tensor, qkv: Tensor, heads: int, scale: float) -> Tensor:
    """The gradient (B, F, P, 3 C)."""
    from guidedcd.acceleration.kernels import forward as kernels

    return kernels.packed_frame_attention_backward(grad, qkv, heads, scale)


@packed_frame_attention_backward.register_fake
def _(grad, qkv, heads, scale):
    return torch.empty(qkv.shape, device=qkv.device, dtype=qkv.dtype)


differentiate(packed_frame_attention, packed_frame_attention_backward, tensors=1)
