"""Random clips, and the files of a latent store."""

from __future__ import annotations

from pathlib import Path

import torch

from guidedcd.data.clips import Clip
from guidedcd.models.teachers.protocol import Teacher


def shard_files(folder: Path) -> dict[str, bytes]:
    """The content of every file of a store's shards, scores and inversions, by its path in the store."""
    files = sorted(folder.rglob("shard-*"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def clips(count: int, teacher: Teacher) -> list[Clip]:
    """Clips of random pixels, always the same."""
    shape = teacher.geometry.pixel_shape
    videos = [torch.rand(shape, generator=torch.Generator().manual_seed(i)) for i in range(count)]
    return [Clip(id=f"c/{i}", dataset="c", caption=f"clip {i}", video=video) for i, video in enumerate(videos)]
