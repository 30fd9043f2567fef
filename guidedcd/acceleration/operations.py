"""The operations of fast layers, on tokens (..., C): Triton on GPUs, PyTorch for the compiler and the CPU.

Every operation computes in float32 at least and returns the dtype of the following matrix product: that of its input,
or autocast's.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from guidedcd.acceleration.kernels import operators

HAS_TRITON = importlib.util.find_spec("triton") is not None
"""Whether Triton can be imported."""
NORM_OPERATOR = True
"""Whether compiled layers on GPUs call the group norm kernels instead of the compiler's own."""


def functions() -> Any:
    """`guidedcd.acceleration.kernels.autograd`, which needs Triton."""
    from guidedcd.acceleration.kernels import autograd

    return autograd


def target_dtype(x: Tensor) -> torch.dtype:
    """The dtype to which a matrix product would cast `x`."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def wide(x: Tensor) -> torch.dtype:
    """The dtype in which norms are computed: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def fused(x: Tensor) -> bool:
    """Whether Triton computes on `x`: on a GPU, outside of compiled code."""
    return x.is_cuda and not torch.compiler.is_compiling() and x.dtype != torch.float64 and HAS_TRITON


def calls(x: Tensor) -> bool:
    """Whether compiled code calls the group norm kernels."""
    usual = x.is_cuda and x.dtype != torch.float64
    return usual and NORM_OPERATOR and HAS_TRITON and torch.compiler.is_compiling()


def dropped(module: nn.Module, x: Tensor) -> Tensor:
    """Dropout, if the module is one and is active."""
    return nnf.dropout(x, module.p) if isinstance(module, nn.Dropout) and module.training and module.p else x


def group_norm(x: Tensor, norm: nn.GroupNorm, *, silu: bool = False, shift: Tensor | None = None) -> Tensor:
    """Group norm over all tokens of each row.

    Args:
        x: (N, L, C).
        norm: Weights, groups and epsilon.
        silu: Whether SiLU follows.
        shift: Added to `x` first, (N, C) or (1, C): a bias, or the time embedding.
    """
    dtype = target_dtype(x)
    if fused(x):
        return functions().GroupNorm.of(x, norm.weight, norm.bias, shift, norm.num_groups, norm.eps, silu, dtype)
    if calls(x):
        how = norm.num_groups, norm.eps, silu, dtype
        return operators.group_norm(x, norm.weight, norm.bias, shift, *how)[0]
    if not torch.compiler.is_compiling():
        return _native_group_norm(x, norm, silu, shift).to(dtype)
    y = x.to(wide(x))
    if shift is not None:
        y = y + shift[:, None].to(y.dtype)
    y = y.unflatten(2, (norm.num_groups, -1))
    var, mean = torch.var_mean(y, dim=(1, 3), keepdim=True, correction=0)
    y = ((y - mean) * (var + norm.eps).rsqrt()).flatten(2)
    y = y * norm.weight.to(y.dtype) + norm.bias.to(y.dtype)
    return (nnf.silu(y) if silu else y).to(dtype)


def _native_group_norm(x: Tensor, norm: nn.GroupNorm, silu: bool, shift: Tensor | None) -> Tensor:
    """PyTorch's kernel, which has a backward pass; it moves channels first and back."""
    if shift is not None:
        x = x + shift[:, None].to(x.dtype)
    y = nnf.group_norm(x.transpose(1, 2), norm.num_groups, norm.weight, norm.bias, norm.eps).transpose(1, 2)
    return nnf.silu(y) if silu else y


def layer_norm(x: Tensor, norm: nn.LayerNorm, delta: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The sum of `x` and `delta` (..., C), and its layer norm.

    Args:
        x: The residual stream.
        norm: Weights and epsilon, over the last dimension.
        delta: The previous layer's output, which is added to the stream.
    """
    dtype = target_dtype(x)
    if norm.weight is not None and norm.bias is not None and fused(x):
        return functions().LayerNorm.of(x, delta, norm.weight, norm.bias, norm.eps, dtype)
    x = x if delta is None else x + delta
    if torch.is_autocast_enabled(x.device.type):  # it would return float32
        weight, bias = (None if p is None else p.to(wide(x)) for p in (norm.weight, norm.bias))
        return x, nnf.layer_norm(x.to(wide(x)), norm.normalized_shape, weight, bias, norm.eps).to(dtype)
    return x, nnf.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def geglu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """First half of the channels of `x` + `bias` times the exact GELU of the second, (..., 2 C) to (..., C)."""
    if fused(x):
        return functions().Geglu.of(x, bias)
    if bias is not None:
        x = x + bias.to(x.dtype)
    value, gate = x.chunk(2, dim=-1)
    return value * nnf.gelu(gate)


def residual(x: Tensor, y: Tensor, bias: Tensor | None) -> Tensor:
    """`x` + `y` + `bias` of (..., C), (..., C) and (C,)."""
    if bias is None:
        return x + y
    if x.dtype == y.dtype and fused(x):
        return functions().Residual.of(x, y, bias)
    return x + (y + bias.to(y.dtype))
