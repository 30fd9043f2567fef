"""Attention over frames without moving them, and to a prompt whose keys are the same for every frame.

Legend: B videos, F frames, P latent positions, C channels, L tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional as nnf

from guidedcd.fast import operations

LONGEST = 64
"""Most frames that the Triton kernel takes."""


def split(x: Tensor, heads: int) -> Tensor:
    """(N, L, C) -> (N, heads, L, C / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


@torch.library.custom_op("guidedcd::frame_attention", mutates_args=())
def frame_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
    """softmax(q k^T scale) v over the frames of (B, F, P, C), by Triton."""
    from guidedcd.fast import kernels  # needs Triton

    return kernels.frame_attention(q, k, v, heads, scale)


@frame_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
    return torch.empty(q.shape, device=q.device, dtype=q.dtype)


@torch.library.custom_op("guidedcd::frame_attention_backward", mutates_args=())
def _backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    from guidedcd.fast import kernels

    return kernels.frame_attention_backward(grad, q, k, v, heads, scale)


@_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.empty(x.shape, device=x.device, dtype=x.dtype) for x in (q, k, v))


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    q, k, v, ctx.heads, ctx.scale = inputs
    ctx.save_for_backward(q, k, v)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(grad.contiguous(), *ctx.saved_tensors, ctx.heads, ctx.scale), None, None


frame_attention.register_autograd(_differentiate, setup_context=_keep)


def takes(q: Tensor) -> bool:
    """Whether the Triton kernel takes queries (B, F, P, C)."""
    return q.is_cuda and operations.HAS_TRITON and q.shape[1] <= LONGEST and q.dtype != torch.float64


def over_frames(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
    """softmax(q k^T scale) v over the frames of (B, F, P, C), each position for itself; differentiable."""
    if takes(q):
        return frame_attention(q, k, v, heads, scale)
    b, f, p, c = q.shape
    q, k, v = (split(x.transpose(1, 2).reshape(b * p, f, c), heads) for x in (q, k, v))
    out = nnf.scaled_dot_product_attention(q, k, v, scale=scale)
    return out.transpose(1, 2).reshape(b, p, f, c).transpose(1, 2).contiguous()


def temporal(attn: Attention, hidden: Tensor) -> Tensor:
    """A temporal self-attention on tokens in the order of frames, (B, F, P, C) to the same."""
    q, k, v = attn.to_q(hidden), attn.to_k(hidden), attn.to_v(hidden)
    return attn.to_out[1](attn.to_out[0](over_frames(q, k, v, attn.heads, attn.scale)))


def spatial(attn: Attention, hidden: Tensor, prompt: Tensor | None, frames: int) -> Tensor:
    """Attention within frames (B F, P, C), or to the prompt, whose rows (B F, L, D) repeat `frames` times."""
    context = hidden if prompt is None else prompt[::frames]
    videos = context.shape[0]
    q = attn.to_q(hidden)
    q = split(q.reshape(videos, -1, q.shape[-1]), attn.heads)
    k, v = split(attn.to_k(context), attn.heads), split(attn.to_v(context), attn.heads)
    out = nnf.scaled_dot_product_attention(q, k, v, scale=attn.scale)
    out = out.transpose(1, 2).reshape(*hidden.shape[:2], -1)
    return attn.to_out[1](attn.to_out[0](out))


def is_plain(attn: Attention) -> bool:
    """Whether an `Attention` is only projections and a softmax, which is all that the functions above compute."""
    extras = ("norm_q", "norm_k", "spatial_norm", "group_norm", "norm_cross", "add_k_proj")
    return (
        all(getattr(attn, name, None) in (None, False) for name in extras)
        and not attn.residual_connection
        and attn.rescale_output_factor == 1
        and not attn.upcast_attention
        and not attn.upcast_softmax
    )
