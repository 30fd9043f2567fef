"""The Triton kernels as differentiable functions of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from guidedcd.fast import kernels, kernels_backward


class GroupNorm(torch.autograd.Function):
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
        y, stats = kernels.group_norm(x, weight, bias, groups, eps, silu, shift, dtype)
        ctx.save_for_backward(x, weight, bias, stats, *([] if shift is None else [shift]))
        ctx.groups, ctx.silu = groups, silu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight, bias and shift."""
        x, weight, bias, stats, *rest = ctx.saved_tensors
        shift = rest[0] if rest else None
        dx, dweight, dbias, dshift = kernels_backward.group_norm_backward(
            grad, x, stats, weight, bias, ctx.groups, ctx.silu, shift
        )
        if shift is not None:
            dshift = dshift.sum_to_size(shift.shape).to(shift.dtype)
        return dx, dweight.to(weight.dtype), dbias.to(bias.dtype), None if shift is None else dshift, *[None] * 4


class LayerNorm(torch.autograd.Function):
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
        kinds, dweight, dbias = ctx.dtypes, None, None
        if grad is None:
            dx = of_sum
        else:
            learned = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
            dx, dweight, dbias = kernels_backward.layer_norm_backward(grad, of_sum, total, weight, ctx.eps, learned)
        given = [None if kind is None or value is None else value.to(kind) for value, kind in zip(
            (dx, dx, dweight, dbias), kinds, strict=True
        )]  # fmt: skip
        return *given, None, None


class Geglu(torch.autograd.Function):
    """First half of the channels times the exact GELU of the second."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """(..., 2 C) to (..., C)."""
        x = x.contiguous()
        ctx.save_for_backward(x)
        return kernels.geglu(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Gradient of x."""
        return kernels_backward.geglu_backward(grad, *ctx.saved_tensors)


class Residual(torch.autograd.Function):
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
