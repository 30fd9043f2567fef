"""The Triton kernels as differentiable functions of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from guidedcd.acceleration.kernels import backward as kernels_backward
from guidedcd.acceleration.kernels import forward as kernels
from guidedcd.acceleration.kernels import group_norm
from guidedcd.acceleration.kernels.operators import shift_gradient


class Fused(torch.autograd.Function):
    """A function of tokens; without gradients it is called directly, which saves the host the cost of a graph."""

    @classmethod
    def of(cls, *args: Any) -> Any:
        """The result for the arguments of `forward`."""
        return cls.apply(*args) if torch.is_grad_enabled() else cls.forward(_NoContext(), *args)


class _NoContext:
    """A context that saves nothing, for calls without gradients."""

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...

    def set_materialize_grads(self, value: bool) -> None: ...


class GroupNorm(Fused):
    """Group norm of (N, L, C) plus a shift, then SiLU or not."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        shift: Tensor | None,
        groups: int,
        eps: float,
        silu: bool,
        dtype: torch.dtype,
    ) -> Tensor:
        """See `operations.group_norm`."""
        x = x.contiguous()
        y, stats = group_norm.group_norm(x, weight, bias, groups, eps, silu, shift, dtype)
        ctx.save_for_backward(x, weight, bias, stats, shift)
        ctx.groups, ctx.silu = groups, silu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight, bias and shift."""
        x, weight, bias, stats, shift = ctx.saved_tensors
        learned, shifted = ctx.needs_input_grad[1] or ctx.needs_input_grad[2], ctx.needs_input_grad[3]
        dx, sums, dshift = group_norm.group_norm_backward(
            grad, x, stats, weight, bias, ctx.groups, ctx.silu, shift, learned, shifted
        )
        dweight, dbias = narrowed(sums, weight.dtype, bias.dtype)
        return dx, dweight, dbias, shift_gradient(dshift, shift), *[None] * 4


def narrowed(sums: Tensor | None, one: torch.dtype, other: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """Two gradients (2, C) in the dtypes of their parameters, in one step where these are the same."""
    if sums is None:
        return None, None
    if one == other:
        first, second = sums.to(one)
        return first, second
    return sums[0].to(one), sums[1].to(other)


class LayerNorm(Fused):
    """The sum of two (..., C), and its layer norm."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """See `operations.layer_norm`."""
        ctx.set_materialize_grads(False)
        total, y = kernels.layer_norm(x, delta, weight, bias, eps, dtype)
        if delta is None:  # an output may not be an input
            total = total.view_as(total)
        ctx.save_for_backward(total if delta is not None else x.contiguous(), weight)
        ctx.eps, ctx.dtypes = eps, (x.dtype, None if delta is None else delta.dtype, weight.dtype, bias.dtype)
        return total, y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_sum: Tensor | None, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of both summands, weight and bias."""
        total, weight = ctx.saved_tensors
        kinds, sums = ctx.dtypes, None
        if grad is None:
            dx = of_sum
        else:
            learned = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
            dx, sums = kernels_backward.layer_norm_backward(grad, of_sum, total, weight, ctx.eps, learned)
        summands = [None if kind is None or dx is None else dx.to(kind) for kind in kinds[:2]]
        return *summands, *narrowed(sums, *kinds[2:]), None, None


class Geglu(Fused):
    """First half of the channels times the exact GELU of the second, after a bias or not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None) -> Tensor:
        """(..., 2 C) and (2 C,) to (..., C)."""
        x = x.contiguous()
        ctx.save_for_backward(x, bias)
        return kernels.geglu(x, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gradients of x and of the bias."""
        x, bias = ctx.saved_tensors
        dx, dbias = kernels_backward.geglu_backward(grad, x, bias, ctx.needs_input_grad[1])
        return dx, None if dbias is None else dbias.to(bias.dtype)


class Residual(Fused):
    """`x` + `y` + `bias`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
        """(..., C), (..., C), (C,)."""
        ctx.dtype = bias.dtype
        return kernels.residual(x, y, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all three."""
        dbias = grad.flatten(0, -2).sum(dim=0, dtype=torch.float32).to(ctx.dtype) if ctx.needs_input_grad[2] else None
        return grad, grad, dbias


class FrameAttention(Fused):
    """Attention over frames, of queries, keys and values, or of all three side by side."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        """Three times (B, F, P, C), or once (B, F, P, 3 C), heads and scale; to (B, F, P, C)."""
        ctx.save_for_backward(*args[:-2])
        ctx.how = args[-2:]
        return (kernels.packed_frame_attention if len(args) == 3 else kernels.frame_attention)(*args)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the tensors."""
        tensors = ctx.saved_tensors
        if len(tensors) == 1:
            return kernels.packed_frame_attention_backward(grad, *tensors, *ctx.how), None, None
        return *kernels.frame_attention_backward(grad, *tensors, *ctx.how), None, None
