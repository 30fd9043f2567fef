"""Frozen networks with the weights of their matrix products and convolutions in int8, one scale per output channel.

A layer dequantises its weight when it computes, and again in the backward pass: autograd would keep every dequantised
weight until then, which is more memory than int8 saves. The gradient of the input is exactly that of a layer with the
dequantised weight. Layers change their class in place, and only layers of exactly PyTorch's classes do.

Legend: N output channels, L length, B batch, C width of an attention.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from guidedcd.acceleration.convolutions import input_gradient
from guidedcd.acceleration.precision import stays

LEVELS = 127
"""The largest int8 value that is used; -128 is not, so that the range is symmetric."""


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (N, ...) in int8, and the scales (N, 1, ...), float32: |weight - int8 * scale| <= scale / 2."""
    wide = weight.detach().float()
    largest = wide.abs().amax(dim=tuple(range(1, wide.dim())), keepdim=True)
    scale = (largest / LEVELS).clamp_min(torch.finfo(torch.float32).tiny)
    return (wide / scale).round_().clamp_(-LEVELS, LEVELS).to(torch.int8), scale


class Int8Layer(nn.Module):
    """Base class of the layers, which have an int8 tensor and scales instead of a weight."""

    kept: str = "weight"
    """The name of the weight in PyTorch's class."""
    int8: Tensor
    scale: Tensor
    weight_dtype: torch.dtype
    """The dtype of the weight before."""

    def dequantised(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight in a dtype, by default its own, rounded once from float32."""
        weight = torch.empty_like(self.int8, dtype=dtype or self.weight_dtype)
        return torch.mul(self.int8, self.scale, out=weight)

    @property
    def saved(self) -> int:
        """Bytes less than the weight had."""
        return self.int8.numel() * self.weight_dtype.itemsize - self.int8.nbytes - self.scale.nbytes


class Product(torch.autograd.Function):
    """x W^T + b with the weight of a layer, which is dequantised again for the gradient of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Int8Layer, bias: Tensor | None) -> Tensor:
        """The output (..., N) for x (..., C)."""
        ctx.layer = layer
        return nnf.linear(x, layer.dequantised(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of x."""
        # One product of all rows: with a grad that is not contiguous, `@` would multiply each of its matrices.
        x = grad.reshape(-1, grad.shape[-1]) @ ctx.layer.dequantised(grad.dtype)
        return x.view(*grad.shape[:-1], x.shape[-1]), None, None


class Convolution(torch.autograd.Function):
    """A convolution with the weight of a layer, which is dequantised again for the gradient of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        """The output for x (B, C, ...)."""
        ctx.layer, ctx.shape = layer, x.shape
        return layer._conv_forward(x, layer.dequantised(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient of x."""
        layer = ctx.layer
        how = (layer.stride, layer.padding, layer.dilation, layer.groups)
        return input_gradient(grad, layer.dequantised(grad.dtype), ctx.shape, how), None


def _is_graded(x: Tensor, bias: Tensor | None) -> bool:
    """Whether only x needs a gradient, and autograd would save a weight; a compiler keeps the int8 one by itself."""
    trained = bias is not None and bias.requires_grad
    return torch.is_grad_enabled() and x.requires_grad and not trained and not torch.compiler.is_compiling()


def product(x: Tensor, layer: Int8Layer, bias: Tensor | None) -> Tensor:
    """x W^T + b for x (..., C), with the dequantised weight W (N, C) of a layer."""
    if _is_graded(x, bias):
        return Product.apply(x, layer, bias)
    return nnf.linear(x, layer.dequantised(x.dtype), bias)


class Int8Linear(Int8Layer, nn.Linear):
    """`nn.Linear`."""

    weight = property(Int8Layer.dequantised)

    def forward(self, input: Tensor) -> Tensor:
        """See `nn.Linear`."""
        return product(input, self, self.bias)


class Int8Convolution(Int8Layer):
    """What the convolutions have in common."""

    weight = property(Int8Layer.dequantised)

    def forward(self: Any, input: Tensor) -> Tensor:
        """See `nn.Conv2d`."""
        if _is_graded(input, self.bias) and input.dim() == self.int8.dim():
            return Convolution.apply(input, self)
        return self._conv_forward(input, self.dequantised(input.dtype), self.bias)


class Int8Conv1d(Int8Convolution, nn.Conv1d):
    """`nn.Conv1d`."""


class Int8Conv2d(Int8Convolution, nn.Conv2d):
    """`nn.Conv2d`."""


class Int8Conv3d(Int8Convolution, nn.Conv3d):
    """`nn.Conv3d`."""


class Int8Attention(Int8Layer, nn.MultiheadAttention):
    """`nn.MultiheadAttention`, whose weight of queries, keys and values is one (3 C, C)."""

    kept = "in_proj_weight"
    in_proj_weight = property(Int8Layer.dequantised)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See `nn.MultiheadAttention`; only self-attention without weights saves no dequantised weight."""
        plain = query is key and key is value and query.dim() == 3 and key_padding_mask is None and not need_weights
        if not plain or self.bias_k is not None or self.add_zero_attn:
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        # The product is taken in the layout of the input, so that it is one of all positions.
        parts = product(query, self, self.in_proj_bias).unflatten(-1, (3, self.num_heads, self.head_dim))
        order = (2, 0, 3, 1, 4) if self.batch_first else (2, 1, 3, 0, 4)
        q, k, v = parts.permute(*order).unbind(0)
        if attn_mask is not None:
            attn_mask = ~attn_mask if attn_mask.dtype == torch.bool else attn_mask.to(q.dtype)
            attn_mask = attn_mask.view(-1, self.num_heads, *attn_mask.shape[1:]) if attn_mask.dim() == 3 else attn_mask
        out = nnf.scaled_dot_product_attention(q, k, v, attn_mask)
        out = out.permute(0, 2, 1, 3) if self.batch_first else out.permute(2, 0, 1, 3)
        return self.out_proj(out.flatten(-2)), None


CLASSES: dict[type[nn.Module], type[Int8Layer]] = {
    nn.Linear: Int8Linear,
    NonDynamicallyQuantizableLinear: Int8Linear,
    nn.Conv1d: Int8Conv1d,
    nn.Conv2d: Int8Conv2d,
    nn.Conv3d: Int8Conv3d,
    nn.MultiheadAttention: Int8Attention,
}
"""The classes of layers that change."""


def quantise(network: nn.Module) -> int:
    """Round the weights of a network's layers to int8, in place, and freeze all its parameters.

    Weights that several modules share, and those that the network's class keeps in float32, stay as they are. Cast the
    network before, not afterwards.

    Returns:
        The bytes that are saved; 0 if the network has no such layer.
    """
    network.requires_grad_(False)
    uses = Counter(id(weight) for module in network.modules() for weight in module._parameters.values())
    for name, module in list(network.named_modules()):
        if (kind := CLASSES.get(type(module))) is None or not _is_usual(module):
            continue
        weight = module._parameters[kind.kept]
        if weight is None or uses[id(weight)] > 1 or stays(network, f"{name}.{kind.kept}"):
            continue
        if weight.nbytes <= weight.numel() + 4 * len(weight):
            continue  # scales of few weights each take what int8 saves
        int8, scale = rounded(weight)
        del module._parameters[kind.kept]
        module.__class__ = kind
        module.register_buffer("int8", int8)
        module.register_buffer("scale", scale)
        module.weight_dtype = weight.dtype
    return saved(network)


def saved(network: nn.Module) -> int:
    """The bytes that `quantise` has saved in a network; 0 where it has changed no layer."""
    return sum(module.saved for module in network.modules() if isinstance(module, Int8Layer))


def _is_usual(module: nn.Module) -> bool:
    """Whether a layer has one weight, and pads with zeros if it is a convolution."""
    padding = getattr(module, "padding_mode", "zeros") == "zeros" and not isinstance(getattr(module, "padding", 0), str)
    return padding and getattr(module, "_qkv_same_embed_dim", True)
