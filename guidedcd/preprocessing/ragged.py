"""Conditioning without its padding: rows of zeros at the end of a caption's embedding are not stored.

A text encoder of 512 tokens pads most captions with zeros; for a video transformer these are as many bytes as the
latents. They are restored when a draw is read. Embeddings that do not end in zeros are stored as they are.

Legend: V videos of a shard, L tokens, R rows that are stored, of all videos.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

PREFIX = "cond."
ROWS, STARTS, LENGTH = "cond_rows.", "cond_starts.", "cond_length."
"""Beginnings of names: the rows of all videos (R, ...), where each video's begin (V + 1,), and L (1,)."""

STARTING = (PREFIX, ROWS, STARTS, LENGTH)
"""All of them."""


def trimmed(cond: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that a shard stores of a conditioning.

    Args:
        cond: By key, (V, L, ...) or (V,).

    Returns:
        "cond.KEY" as it is, or "cond_rows.KEY", "cond_starts.KEY" and "cond_length.KEY" where videos end in zeros.
    """
    tensors: dict[str, Tensor] = {}
    for key, value in cond.items():
        lengths = _lengths(value)
        if lengths is None:
            tensors[PREFIX + key] = value
            continue
        counts = lengths.tolist()
        tensors[ROWS + key] = torch.cat([row[:count] for row, count in zip(value, counts, strict=True)])
        tensors[STARTS + key] = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).cpu()
        tensors[LENGTH + key] = torch.tensor([value.shape[1]])
    return tensors


def _lengths(value: Tensor) -> Tensor | None:
    """The number of rows up to the last one that is not zero (V,); None if none can be left out."""
    if value.dim() < 2 or not value.numel():
        return None
    filled = (value != 0).flatten(2).any(2) if value.dim() > 2 else value != 0
    numbers = torch.arange(1, value.shape[1] + 1, device=value.device)
    lengths = (filled * numbers).amax(1)
    return None if int(lengths.sum()) == value.shape[0] * value.shape[1] else lengths


def keys(names: Any) -> list[str]:
    """The keys of the conditioning of a shard with tensors of these names."""
    return [name.removeprefix(start) for name in names for start in (PREFIX, ROWS) if name.startswith(start)]


def of_video(tensors: Any, key: str, video: int) -> Tensor:
    """The conditioning of one video (L, ...), from an open safetensors file."""
    if PREFIX + key in tensors.keys():  # noqa: SIM118 - not a mapping
        whole: Tensor = tensors.get_slice(PREFIX + key)[video : video + 1][0]
        return whole
    start, stop = tensors.get_slice(STARTS + key)[video : video + 2].tolist()
    stored = tensors.get_slice(ROWS + key)
    rows: Tensor = stored[start : max(stop, start + 1)] if stored.get_shape()[0] else stored[:]
    padded = rows.new_zeros(int(tensors.get_tensor(LENGTH + key)), *rows.shape[1:])
    padded[: stop - start] = rows[: stop - start]
    return padded


def of_tensors(tensors: Mapping[str, Tensor], key: str) -> Tensor:
    """The conditioning (L, ...) of the only video of what `trimmed` returned."""
    if PREFIX + key in tensors:
        return tensors[PREFIX + key][0]
    rows = tensors[ROWS + key]
    padded = rows.new_zeros(int(tensors[LENGTH + key]), *rows.shape[1:])
    padded[: len(rows)] = rows
    return padded


def of_shard(tensors: Any) -> dict[str, Tensor]:
    """The conditioning of all videos of an open safetensors file, by "cond.KEY" (V, L, ...)."""
    names = list(tensors.keys())
    whole = {PREFIX + key: tensors.get_tensor(PREFIX + key) for key in keys(names) if PREFIX + key in names}
    for key in keys(names):
        if PREFIX + key not in names:
            videos = len(tensors.get_tensor(STARTS + key)) - 1
            whole[PREFIX + key] = torch.stack([of_video(tensors, key, video) for video in range(videos)])
    return whole
