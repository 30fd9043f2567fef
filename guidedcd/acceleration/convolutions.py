"""Convolutions of channels-last images and of frames; frozen ones save only their weight for the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from guidedcd.acceleration.operations import target_dtype

Convolution = TypeVar("Convolution", nn.Conv2d, nn.Conv3d)


class FrozenConvolution(torch.autograd.Function):
    """A convolution whose weight and bias need no gradient; autograd's own would still save the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: tuple) -> Tensor:
        """The output for `x` (N, C, ...); `how` is (stride, padding, dilation, groups), three of them tuples."""
        # Not save_for_backward: a checkpoint recomputes up to the last saved tensor and stops there.
        ctx.weight, ctx.shape, ctx.how = weight, x.shape, how
        stride, padding, dilation, groups = how
        return torch.convolution(x, weight, bias, stride, padding, dilation, False, (0,) * len(stride), groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of x, a transposed convolution."""
        return input_gradient(grad, ctx.weight, ctx.shape, ctx.how), None, None, None


def input_gradient(grad: Tensor, weight: Tensor, shape: Sequence[int], how: tuple) -> Tensor:
    """The gradient of a convolution's input of `shape` (N, C, ...), a transposed convolution of the output's gradient.

    Args:
        grad: The gradient of the output.
        weight: The convolution's weight.
        shape: Of the input.
        how: (stride, padding, dilation, groups).
    """
    # Not aten's convolution_backward, which needs the input and gives the gradient the input's layout.
    stride, padding, dilation, groups = how
    shapes = zip(shape[2:], grad.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    more = [n - ((m - 1) * s - 2 * p + d * (k - 1) + 1) for n, m, k, s, p, d in shapes]
    return torch.convolution(grad, weight, None, stride, padding, dilation, True, more, groups)


def convolution(x: Tensor, weight: Tensor, how: tuple, bias: Tensor | None = None) -> Tensor:
    """`conv2d` of x (N, C, H, W), or `conv3d` of (N, C, F, H, W); `how` is (stride, padding, dilation, groups)."""
    learns = weight.requires_grad or (bias is not None and bias.requires_grad)
    graded = torch.is_grad_enabled() and x.requires_grad and not learns
    if not graded or torch.compiler.is_compiling():
        return (nnf.conv3d if x.dim() == 5 else nnf.conv2d)(x, weight, bias, *how)
    dtype = target_dtype(x)
    return FrozenConvolution.apply(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), how)


def is_usual(conv: nn.Module, kind: type[Convolution]) -> TypeGuard[Convolution]:
    """Whether a module is exactly a convolution of this kind, padded with zeros."""
    return type(conv) is kind and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def convolve(conv: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """A convolution's output without its bias, channels-last (N, C, H, W) to the same; and the bias to add, or None."""
    if not is_usual(conv, nn.Conv2d):
        return conv(x), None
    return convolution(x, conv.weight, (conv.stride, conv.padding, conv.dilation, conv.groups)), conv.bias


def convolved(conv: nn.Module, x: Tensor) -> Tensor:
    """A convolution's output with its bias, channels-last (N, C, H, W) to the same."""
    if not is_usual(conv, nn.Conv2d):
        return conv(x)
    return convolution(x, conv.weight, (conv.stride, conv.padding, conv.dilation, conv.groups), conv.bias)


def convolve_frames(conv: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """A (k, 1, 1) convolution of (B, F, P, C), computed as a 2D one, without its bias; and the bias to add, or None."""
    x = x.permute(0, 3, 1, 2)
    if is_usual(conv, nn.Conv3d):
        how = (conv.stride[:2], conv.padding[:2], conv.dilation[:2], conv.groups)
        y, bias = convolution(x, conv.weight.squeeze(-1), how), conv.bias
    else:  # an adapter around a Conv3d
        y, bias = conv(x.unsqueeze(-1)).squeeze(-1), None
    return y.permute(0, 2, 3, 1), bias
