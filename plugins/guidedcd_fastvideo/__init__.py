"""A dataset of FastVideo's preprocessed Parquet files: latents and embedded captions, which a run need not encode."""

from __future__ import annotations

from pathlib import Path

import attrs

from guidedcd.plugins.configs import DatasetConfig
from guidedcd.plugins.hookspecs import hookimpl


@attrs.frozen(kw_only=True)
class FastVideoConfig(DatasetConfig):
    """Options of the dataset `fastvideo`."""

    path: Path | None = attrs.field(default=None, metadata={"positional": True})
    """Folder with .parquet files at any depth, or one file."""


@hookimpl
def register_datasets(register):
    """Offer `fastvideo`."""
    register(
        "fastvideo",
        "guidedcd_fastvideo.dataset:FastVideo",
        config=FastVideoConfig,
        summary="FastVideo's Parquet files of latents and embedded captions; nothing is encoded",
    )
