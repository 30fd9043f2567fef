"""The blocks of transformers' vision tower, with one attention for all frame pairs of equal size.

transformers splits its attention by frame pair, in some versions with a mask over all patches, and reads lengths from
the device in each block. The computation is the same.

Legend: P patches, C width, d width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor
from transformers.models.qwen2_vl import modeling_qwen2_vl

from guidedcd_videoreward.patches import Grid

Run = tuple[int, int]
"""Consecutive frame pairs with as many patches each: their number, and the patches of one."""


def runs(grids: Sequence[Grid]) -> list[Run]:
    """The frame pairs of all videos, those of equal size together."""
    lengths = [h * w for t, h, w in grids for _ in range(t)]
    return [(len(list(group)), length) for length, group in groupby(lengths)]


def positions(grid: Grid, merge: int) -> Tensor:
    """Row and column (P, 2) of each patch of a video; the patches of a token follow one another."""
    t, h, w = grid
    rows = torch.arange(h, device="cpu")[:, None].expand(h, w)
    columns = torch.arange(w, device="cpu").expand(h, w)
    one = torch.stack([rows, columns], dim=-1).view(h // merge, merge, w // merge, merge, 2)
    return one.transpose(1, 2).reshape(h * w, 2).repeat(t, 1)


def rotation(grids: Sequence[Grid], merge: int, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (P, d) of the rows and columns of all patches."""
    coordinates = torch.cat([positions(grid, merge) for grid in grids]).to(frequencies.device)
    angles = (coordinates[..., None] * frequencies).flatten(1).repeat(1, 2)
    return angles.cos(), angles.sin()


def block_output(block: Any, hidden: Tensor, cosines: Tensor, sines: Tensor, pairs: Sequence[Run]) -> Tensor:
    """A block of the tower on patches (P, C), whose attention stays within a frame pair."""
    attention = block.attn
    query, key, value = attention.qkv(block.norm1(hidden)).unflatten(1, (3, attention.num_heads, -1)).unbind(1)
    query, key = modeling_qwen2_vl.apply_rotary_pos_emb_vision(query, key, cosines, sines)
    results, sizes = [], [count * length for count, length in pairs]
    for run, parts in zip(pairs, zip(*(x.split(sizes) for x in (query, key, value)), strict=True), strict=True):
        batch = (part.unflatten(0, run).transpose(1, 2) for part in parts)  # (pairs, heads, patches, d)
        results.append(nnf.scaled_dot_product_attention(*batch).transpose(1, 2).flatten(2).flatten(0, 1))
    hidden = hidden + attention.proj(torch.cat(results))
    return hidden + block.mlp(block.norm2(hidden))
