"""Exact, faster attention and temporal convolution for tiny `UNet3DConditionModel`s; classes and weights stay stock.

`guidedcd.acceleration` is for large networks on GPUs. This module changes no memory layout and is faster on CPUs too.
The gain has three sources. All frames of a video share a prompt, so that its keys and values are computed once. The
temporal sequences are so short that plain matrix products are faster than fused GPU kernels. A temporal Conv3d equals a
Conv2d.
"""

from __future__ import annotations

import types

import torch
import torch.nn.functional as nnf
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import TemporalConvLayer
from torch import Tensor, nn

from guidedcd.acceleration.attention import spatial, split


class Temporal:
    """Attention over the frames of one latent position, (B * P, F, D)."""

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        q, k, v = (split(proj(hidden_states), attn.heads) for proj in (attn.to_q, attn.to_k, attn.to_v))
        if q.is_cuda:  # fused kernels take longer for 8 tokens
            out = (q @ k.transpose(-1, -2) * attn.scale).softmax(-1) @ v
        else:
            out = nnf.scaled_dot_product_attention(q, k, v, scale=attn.scale)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


class Spatial:
    """Attention within frames, (B * F, P, D), or to the prompt, whose rows repeat `frames` times."""

    def __init__(self, frames: int) -> None:
        self.frames = frames

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *args: object,
        **kwargs: object,
    ) -> Tensor:
        return spatial(attn, hidden_states, encoder_hidden_states, self.frames)


def convolve(self: TemporalConvLayer, hidden_states: Tensor, num_frames: int = 1) -> Tensor:
    """`TemporalConvLayer.forward` without dropout: (B * F, C, H, W) to the same shape."""
    n, c, h, w = hidden_states.shape
    x = hidden_states.view(-1, num_frames, c, h * w).transpose(1, 2)
    y = x
    for stage in (self.conv1, self.conv2, self.conv3, self.conv4):
        conv = stage[-1]
        y = nnf.conv2d(nnf.silu(stage[0](y)), conv.weight.squeeze(-1), conv.bias, padding=(1, 0))
    return (x + y).transpose(1, 2).reshape(n, c, h, w)


def speed_up(network: nn.Module, frames: int, temporal: object | None = None, convolutions: bool = True) -> nn.Module:
    """Switch a UNet3DConditionModel to the fast paths, in place; the output equals the stock one up to rounding.

    Args:
        network: A network in eval mode, or one that is trained without dropout.
        frames: Frames per video.
        temporal: Processor of the attention over frames in place of `Temporal`.
        convolutions: Replace the temporal convolutions too, which then have no dropout; faster on GPUs only.
    """
    for name, module in network.named_modules():
        if isinstance(module, Attention):
            over_frames = "temp_attentions" in name or "transformer_in" in name
            module.set_processor((temporal or Temporal()) if over_frames else Spatial(frames))
        elif convolutions and isinstance(module, TemporalConvLayer):
            module.forward = types.MethodType(convolve, module)
    return network


def difference(network: nn.Module, frames: int, *inputs: Tensor) -> float:
    """Largest absolute change of the output by `speed_up`, which is applied to `network`."""
    with torch.no_grad():
        stock = network(*inputs, return_dict=False)[0]
        return (speed_up(network, frames)(*inputs, return_dict=False)[0] - stock).abs().max().item()
