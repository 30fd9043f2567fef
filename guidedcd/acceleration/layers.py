"""The layers of `UNet3DConditionModel` on tokens: activations stay channels-last, without copies between layers.

A channels-last image batch (B F, C, H, W) is in memory what a token batch (B F, H W, C), a video (B, F H W, C) and
frames over positions (B, F, H W, C) are, so that convolutions, norms, linear layers and both kinds of attention take it
without a copy. Each function computes what the stock `forward` of its layer computes, with the layer's own submodules,
which adapters may wrap; the bias of an unwrapped convolution joins the operation that follows.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional as nnf

from guidedcd.acceleration.attention import spatial, temporal
from guidedcd.acceleration.convolutions import convolve, convolve_frames, convolved
from guidedcd.acceleration.operations import dropped, fused, geglu, group_norm, layer_norm, residual


def tokens(image: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H W, C), without a copy if channels are last."""
    return image.permute(0, 2, 3, 1).flatten(1, 2)


def image(tokens: Tensor, like: Tensor) -> Tensor:
    """(N, H W, C) to channels-last (N, C, H, W) with the height and width of `like`, without a copy."""
    return tokens.reshape(like.shape[0], *like.shape[2:], tokens.shape[-1]).permute(0, 3, 1, 2)


def shifted(bias: Tensor | None, time: Tensor | None = None) -> Tensor | None:
    """A bias (C,) and a time embedding (N, C) as one shift."""
    if bias is None:
        return time
    return bias[None] if time is None else time + bias.to(time.dtype)


def resnet(self: ResnetBlock2D, x: Tensor, temb: Tensor | None) -> Tensor:
    """`ResnetBlock2D`: (N, C, H, W) and (N, D) to (N, C', H, W)."""
    h, bias = convolve(self.conv1, image(group_norm(tokens(x), self.norm1, silu=True), x))
    time = None if self.time_emb_proj is None or temb is None else self.time_emb_proj(nnf.silu(temb))
    h = group_norm(tokens(h), self.norm2, silu=True, shift=shifted(bias, time))
    h, bias = convolve(self.conv2, image(dropped(self.dropout, h), x))
    skip = self.conv_shortcut
    if skip is None:
        skipped = tokens(x)
    elif type(skip) is nn.Conv2d and skip.kernel_size == (1, 1):
        joint = bias if skip.bias is None else skip.bias if bias is None else skip.bias + bias
        skipped, bias = nnf.linear(tokens(x), skip.weight.flatten(1), joint), None
    else:
        skipped = tokens(skip(x))
    out = residual(skipped, tokens(h), bias)
    return image(out if self.output_scale_factor == 1 else out / self.output_scale_factor, x)


def temporal_convolution(self: TemporalConvLayer, x: Tensor, frames: int) -> Tensor:
    """`TemporalConvLayer`: (B F, C, H, W) to the same."""
    video = tokens(x).unflatten(0, (-1, frames))
    y, bias = video, None
    for stage in (self.conv1, self.conv2, self.conv3, self.conv4):
        h = group_norm(y.flatten(1, 2), stage[0], silu=True, shift=shifted(bias))
        h = dropped(stage[-2], h)
        y, bias = convolve_frames(stage[-1], h.view(video.shape[:3] + h.shape[-1:]))
    return image(residual(video, y, bias).flatten(0, 1), x)


def gated(self: GEGLU, x: Tensor) -> Tensor:
    """`GEGLU`: (..., C) to (..., 4 C); the kernel of the activation's gradient also sums the bias's."""
    if type(self.proj) is nn.Linear and fused(x):
        return geglu(nnf.linear(x, self.proj.weight), self.proj.bias)
    return geglu(self.proj(x))


def transformer(self: Transformer2DModel, x: Tensor, prompt: Tensor | None, frames: int) -> Tensor:
    """`Transformer2DModel`: attention within frames (B F, C, H, W) and to their prompt (B F, L, D)."""
    h = _enter(self, group_norm(tokens(x), self.norm), x)
    for block in self.transformer_blocks:
        h, normed = layer_norm(h, block.norm1)
        h, normed = layer_norm(h, block.norm2, spatial(block.attn1, normed, None, frames))
        h, normed = layer_norm(h, block.norm3, spatial(block.attn2, normed, prompt, frames))
        h = h + block.ff(normed)
    return x + _leave(self, h, x)


def temporal_transformer(self: TransformerTemporalModel, x: Tensor, frames: int) -> Tensor:
    """`TransformerTemporalModel`: attention over the frames of each position, (B F, C, H, W) to the same."""
    video = tokens(x).unflatten(0, (-1, frames))
    h = self.proj_in(group_norm(video.flatten(1, 2), self.norm).view(video.shape))
    for block in self.transformer_blocks:
        h, normed = layer_norm(h, block.norm1)
        h, normed = layer_norm(h, block.norm2, _watched(block.attn1, normed))
        h, normed = layer_norm(h, block.norm3, _watched(block.attn2, normed))
        h = h + block.ff(normed)
    return x + image(self.proj_out(h).flatten(0, 1), x)


def upsample(self: Upsample2D, x: Tensor) -> Tensor:
    """`Upsample2D`: nearest-neighbour upsampling by 2, then the convolution; (N, C, H, W) to (N, C', 2 H, 2 W)."""
    n, c, h, w = x.shape
    twice = x.permute(0, 2, 3, 1)[:, :, None, :, None].expand(n, h, 2, w, 2, c).reshape(n, 2 * h, 2 * w, c)
    return convolved(self.conv, twice.permute(0, 3, 1, 2))


def norm_out(self: nn.GroupNorm, x: Tensor) -> Tensor:
    """`GroupNorm` of (N, C, H, W), channels staying last."""
    return image(group_norm(tokens(x), self), x)


def _watched(attn: Attention, hidden: Tensor) -> Tensor:
    """A temporal attention (B, F, P, C); hooks on it receive the stock network's input, (B P, F, C).

    A pre-hook with a true attribute `takes_frames` receives (B, F, P, C), changes nothing, and keeps the fast path.
    """
    if torch.compiler.is_compiling():
        return temporal(attn, hidden)
    before = attn._forward_pre_hooks.values()
    if not attn._forward_hooks and all(getattr(hook, "takes_frames", False) for hook in before):
        for hook in before:
            hook(attn, (hidden,), {})
        return temporal(attn, hidden)
    b, f, p, c = hidden.shape
    attended = attn(hidden.transpose(1, 2).reshape(b * p, f, c))
    return attended.view(b, p, f, c).transpose(1, 2).contiguous()


def _enter(self: Transformer2DModel, h: Tensor, x: Tensor) -> Tensor:
    return self.proj_in(h) if self.use_linear_projection else tokens(self.proj_in(image(h, x)))


def _leave(self: Transformer2DModel, h: Tensor, x: Tensor) -> Tensor:
    return image(self.proj_out(h), x) if self.use_linear_projection else self.proj_out(image(h, x))


def is_standard(block: BasicTransformerBlock) -> bool:
    """Whether a transformer block has only the layers that the functions above compute."""
    extras: tuple[Any, ...] = (block.pos_embed, block._chunk_size)
    return (
        block.norm_type == "layer_norm"
        and block.attn2 is not None
        and not block.only_cross_attention
        and not hasattr(block, "fuser")
        and all(extra is None for extra in extras)
        and type(block.ff.net[0]) is GEGLU
    )
