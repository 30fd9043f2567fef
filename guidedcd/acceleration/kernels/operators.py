"""The group norm kernels as an operator that compiled layers call: they read channels-last rows whole.

The compiler's own reductions go group by group, a few channels of each token at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
    """Group norm of `x` + `shift`, (N, L, C) and (N or 1, C), then SiLU; and mean and 1/std (N, G, 2). By Triton."""
    from guidedcd.acceleration.kernels import group_norm as group_norm_kernels

    return group_norm_kernels.group_norm(x, weight, bias, groups, eps, silu, shift, dtype)


@group_norm.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    y = torch.empty(x.shape, device=x.device, dtype=dtype)
    return y, torch.empty(x.shape[0], groups, 2, device=x.device, dtype=torch.float32)


@torch.library.custom_op("guidedcd::group_norm_backward", mutates_args=())
def _backward(
    grad: Tensor, x: Tensor, stats: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, groups: int, silu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from guidedcd.acceleration.kernels import group_norm as group_norm_kernels

    dx, sums, dshift = group_norm_kernels.group_norm_backward(
        grad, x.contiguous(), stats, weight, bias, groups, silu, shift
    )
    if dshift is None:
        dshift = sums.new_empty(0)
    return dx, sums[0].clone(), sums[1].clone(), dshift  # results of an operator share no memory


@_backward.register_fake
def _(
    grad: Tensor, x: Tensor, stats: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, groups: int, silu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def sums(*shape: int) -> Tensor:
        return torch.empty(shape, device=x.device, dtype=torch.float32)

    channels = x.shape[2]
    shifts = sums(0) if shift is None else sums(x.shape[0], channels)
    return torch.empty(x.shape, device=x.device, dtype=x.dtype), sums(channels), sums(channels), shifts


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, shift, ctx.groups, _, ctx.silu, _ = inputs
    ctx.save_for_backward(x, weight, bias, output[1], shift)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, bias, stats, shift = ctx.saved_tensors
    dx, dweight, dbias, dshift = _backward(grad.contiguous(), x, stats, weight, bias, shift, ctx.groups, ctx.silu)
    dshift = None if shift is None else dshift.sum_to_size(shift.shape).to(shift.dtype)
    return dx, dweight.to(weight.dtype), dbias.to(bias.dtype), dshift, None, None, None, None


group_norm.register_autograd(_differentiate, setup_context=_keep)
