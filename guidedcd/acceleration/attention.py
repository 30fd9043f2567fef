"""Attention over frames without moving them, and to a prompt whose keys are the same for every frame.

Legend: B videos, F frames, P latent positions, C channels, L tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as nnf

from guidedcd.acceleration import attention_backend, operations
from guidedcd.acceleration.kernels import operators

LONGEST = 64
"""The largest number of frames that the Triton kernel supports."""


def split(x: Tensor, heads: int) -> Tensor:
    """(N, L, C) -> (N, heads, L, C / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def takes(q: Tensor) -> bool:
    """Whether the Triton kernels support queries (B, F, P, C)."""
    return q.is_cuda and operations.HAS_TRITON and q.shape[1] <= LONGEST and q.dtype != torch.float64


def over_frames(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
    """softmax(q k^T scale) v over the frames of (B, F, P, C), at each position separately; differentiable."""
    if takes(q):
        return _by_kernels(q, k, v, heads, scale)
    b, f, p, c = q.shape
    q, k, v = (split(x.transpose(1, 2).reshape(b * p, f, c), heads) for x in (q, k, v))
    out = nnf.scaled_dot_product_attention(q, k, v, scale=scale)
    return out.transpose(1, 2).reshape(b, p, f, c).transpose(1, 2).contiguous()


def packed(attn: Attention) -> Tensor | None:
    """The weights of queries, keys and values as one (3 C, C), for one product; None with adapters or biases."""
    projections = (attn.to_q, attn.to_k, attn.to_v)
    if any(type(layer) is not nn.Linear or layer.bias is not None for layer in projections):
        return None
    weights = [layer.weight for layer in projections]
    return torch.cat(weights) if weights[0].shape == weights[1].shape == weights[2].shape else None


def temporal(attn: Attention, hidden: Tensor) -> Tensor:
    """A temporal self-attention on tokens in frame order, (B, F, P, C) to the same."""
    weight = packed(attn) if takes(hidden) else None
    if weight is not None:
        out = _by_kernels(nnf.linear(hidden, weight), attn.heads, attn.scale)
    else:
        q, k, v = attn.to_q(hidden), attn.to_k(hidden), attn.to_v(hidden)
        out = over_frames(q, k, v, attn.heads, attn.scale)
    return _projected(attn, out)


def spatial(attn: Attention, hidden: Tensor, prompt: Tensor | None, frames: int) -> Tensor:
    """Attention within frames (B F, P, C), or to the prompt, whose rows (B F, L, D) repeat `frames` times."""
    context = hidden if prompt is None else prompt[::frames]
    videos = context.shape[0]
    weight = packed(attn) if prompt is None else None
    if weight is not None:
        q, k, v = nnf.linear(hidden, weight).chunk(3, dim=-1)
    else:
        q, k, v = attn.to_q(hidden), attn.to_k(context), attn.to_v(context)
    q = split(q.reshape(videos, -1, q.shape[-1]), attn.heads)
    out = attention_backend.attention(q, split(k, attn.heads), split(v, attn.heads), attn.scale)
    out = out.transpose(1, 2).reshape(*hidden.shape[:2], -1)
    return _projected(attn, out)


def _by_kernels(*args: Any) -> Tensor:
    """Attention over frames of queries, keys and values, or of all three side by side; then heads and scale."""
    if not torch.compiler.is_compiling():
        return operations.functions().FrameAttention.of(*args)
    return (operators.packed_frame_attention if len(args) == 3 else operators.frame_attention)(*args)


def _projected(attn: Attention, out: Tensor) -> Tensor:
    project, dropout = attn.to_out
    return operations.dropped(dropout, project(out))


def is_standard(attn: Attention) -> bool:
    """Whether an `Attention` consists of projections and a softmax only, which the functions above compute."""
    extras = ("norm_q", "norm_k", "spatial_norm", "group_norm", "norm_cross", "add_k_proj")
    return (
        all(getattr(attn, name, None) in (None, False) for name in extras)
        and not attn.residual_connection
        and attn.rescale_output_factor == 1
        and not attn.upcast_attention
        and not attn.upcast_softmax
    )
