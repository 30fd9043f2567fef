"""The video tower of InternVideo2 (arXiv:2403.15377), under the names of the released checkpoint.

Legend: B videos, T frames, N tokens (1 + T * grid^2), D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def interpolate_positions(table: Tensor, frames: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Resize a learned position table, first over time (linear), then over space (bicubic), except its class row.

    Args:
        table: (1, 1 + frames[0] * grid[0]^2, D), tokens time-major, then row-major.
        frames: Frames of the table, and of the result.
        grid: Patches per side of the table, and of the result.

    Returns:
        (1, 1 + frames[1] * grid[1]^2, D), computed in float32, in the table's dtype.
    """
    first, rest = table[:, :1].float(), table[:, 1:].float()
    (t, t_new), (g, g_new), width = frames, grid, table.shape[-1]
    if rest.shape[1] != t * g * g:
        raise ValueError(f"a position table of {rest.shape[1]} rows does not fit {t} frames of {g} x {g} patches")
    if t_new != t:
        sites = rest.reshape(t, g * g, width).permute(1, 2, 0)
        rest = nnf.interpolate(sites, size=t_new, mode="linear", align_corners=False).permute(2, 0, 1)
    if g_new != g:
        maps = rest.reshape(t_new, g, g, width).permute(0, 3, 1, 2)
        rest = nnf.interpolate(maps, size=(g_new, g_new), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    return torch.cat([first, rest.reshape(1, t_new * g_new * g_new, width)], dim=1).to(table.dtype)


class Attention(nn.Module):
    """Self-attention whose queries and keys are normalised over the full width, before the split into heads."""

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.q_norm = nn.RMSNorm(width, eps=eps)
        self.k_norm = nn.RMSNorm(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (split_heads(x, self.heads) for x in (self.q_norm(q), self.k_norm(k), v))
        return self.proj(nnf.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with GELU; the released GPU kernels compute its tanh form, other code the exact one."""

    def __init__(self, width: int, hidden: int, gelu: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.approximate = {"erf": "none", "tanh": "tanh"}[gelu]

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.fc2(nnf.gelu(self.fc1(x), approximate=self.approximate))


class LayerScale(nn.Module):
    """A learned factor per channel, applied in float32."""

    def __init__(self, width: int, value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), value))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return (x * self.gamma.float()).to(x.dtype)  # promotes element by element, without a copy in float32


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float, scale: float, gelu: str) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(width, eps=eps)
        self.attn = Attention(width, heads, eps)
        self.ls1 = LayerScale(width, scale)
        self.norm2 = nn.RMSNorm(width, eps=eps)
        self.mlp = Mlp(width, hidden, gelu)
        self.ls2 = LayerScale(width, scale)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class CrossAttention(nn.Module):
    """Attention of one query over all tokens; biases are separate parameters in the checkpoint."""

    def __init__(self, width: int, heads: int, out: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.q_bias, self.k_bias, self.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(3))
        self.proj = nn.Linear(width, out)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, Nq, D), (B, N, D), (B, N, D) -> (B, Nq, out)."""
        q, k, v = self.q(q) + self.q_bias, self.k(k) + self.k_bias, self.v(v) + self.v_bias
        q, k, v = (split_heads(x, self.heads) for x in (q, k, v))
        return self.proj(nnf.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class AttentionPool(nn.Module):
    """Pools all tokens by attention; the query is their mean, class token included."""

    def __init__(self, width: int, heads: int, out: int, eps: float) -> None:
        super().__init__()
        self.norm1_q, self.norm1_k, self.norm1_v = (nn.LayerNorm(width, eps=eps) for _ in range(3))
        self.cross_attn = CrossAttention(width, heads, out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, out)."""
        query = self.norm1_q(x.mean(dim=1, keepdim=True))
        return self.cross_attn(query, self.norm1_k(x), self.norm1_v(x)).squeeze(1)


class PatchEmbed(nn.Module):
    """Patches of single frames to tokens, time-major, then row-major."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, width, kernel_size=(1, patch, patch), stride=(1, patch, patch))

    def forward(self, video: Tensor) -> Tensor:
        """(B, T, 3, H, W) -> (B, T * grid^2, D)."""
        return self.proj(video.transpose(1, 2)).flatten(2).transpose(1, 2)


class VisionEncoder(nn.Module):
    """The video tower up to its attention pool."""

    def __init__(self, cfg: Mapping[str, Any], gelu: str) -> None:
        super().__init__()
        width, eps = cfg["embed_dim"], cfg["rmsnorm_eps"]
        hidden = cfg["mlp_hidden"] or int(width * 48 / 11)
        self.patch, self.frames = cfg["patch_size"], cfg["ckpt_num_frames"]
        self.grid = cfg["img_size"] // self.patch
        self.patch_embed = PatchEmbed(self.patch, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.frames * self.grid**2, width))
        self.img_pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, width))
        block = (width, cfg["num_heads"], hidden, eps, cfg["layer_scale"], gelu)
        self.blocks = nn.ModuleList(Block(*block) for _ in range(cfg["depth"]))
        self.clip_projector = AttentionPool(
            width, cfg["attn_pool_num_heads"], cfg["clip_embed_dim"], cfg["pool_ln_eps"]
        )
        self.gradient_checkpointing = False

    def positions(self, frames: int, grid: int | None = None) -> Tensor:
        """The position table for `frames` frames of grid x grid patches: (1, 1 + frames * grid^2, D).

        A single frame has its own table, which is no slice of the video's.
        """
        grid = grid or self.grid
        if frames == 1:
            return interpolate_positions(self.img_pos_embed, (1, 1), (self.grid, grid))
        return interpolate_positions(self.pos_embed, (self.frames, frames), (self.grid, grid))

    def tokens(self, video: Tensor) -> Tensor:
        """Normalised pixels (B, T, 3, H, W), H = W -> tokens after the last block (B, N, D); there is no final norm."""
        x = self.patch_embed(video)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + self.positions(video.shape[1], video.shape[-1] // self.patch)
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)  # nothing is drawn
            else:
                x = block(x)
        return x

    def forward(self, video: Tensor) -> Tensor:
        """Normalised pixels (B, T, 3, H, W) -> pooled (B, clip_embed_dim)."""
        return self.clip_projector(self.tokens(video))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, D) -> (B, heads, N, D / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
