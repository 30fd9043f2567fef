"""Networks in another dtype, without the parts that must stay in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

GATHERED = "gathered_dtype"
"""Attribute of a network that FSDP2 shards: the dtype of its gathered weights."""


def cast(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast a network in place, except what its class keeps in float32 (`_keep_in_fp32_modules` of diffusers).

    Of Wan these are the time embedding, the norms, tables of shifts and scales, and the angles of positions.
    """
    kept = _kept(network)
    if not kept:
        nn.Module.to(network, dtype)  # a diffusers network's own method may warn about layers that it does not have
        return
    for name, parameter in network.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if stays(network, name) else dtype)
    cast_buffers(network, dtype)


def cast_buffers(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast a network's buffers in place, except whole numbers and what its class keeps in float32."""
    for prefix, module in network.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point() and not stays(network, f"{prefix}.{name}"):
                setattr(module, name, buffer.to(dtype))


def computing_dtype(network: nn.Module) -> torch.dtype:
    """The dtype in which a network computes: that of its first weight that need not stay in float32.

    The weights of a network that FSDP2 shards are float32 between two passes; it computes in the dtype in which they
    are gathered.
    """
    gathered: torch.dtype | None = getattr(network, GATHERED, None)
    if gathered is not None:
        return gathered
    weights = network.named_parameters()
    dtype: torch.dtype = next(weight.dtype for name, weight in weights if not stays(network, name))
    return dtype


def stays(network: nn.Module, name: str) -> bool:
    """Whether the weight `name` of a network stays in float32."""
    return not _kept(network).isdisjoint(name.split("."))


def relative_error(values: Tensor, reference: Tensor) -> float:
    """|values - reference| / |reference|, Euclidean norms in float64."""
    values, reference = values.detach().double(), reference.detach().double()
    return float((values - reference).norm() / reference.norm().clamp_min(1e-30))


def _kept(network: Any) -> set[str]:
    return set(getattr(network, "_keep_in_fp32_modules", None) or ())
