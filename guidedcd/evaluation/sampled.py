"""The videos that an evaluation sampled, kept beside evaluation.json for metrics that are added later."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from guidedcd.files import digest, replacing

FOLDER = "evaluation_videos"
"""Name of the folder, beside evaluation.json."""
LARGEST = 2**30
"""Bytes; the videos of a larger evaluation are not kept, and are sampled again when they are needed."""


class SampledVideos:
    """The videos of one evaluation, one file for each batch, as exact as they were sampled.

    Args:
        folder: The folder of the evaluation's results.
        settings: All that every video depends on, as JSON values.
        size: Bytes of all videos of the evaluation.
        reads: Whether videos that are there are used. An evaluation from the start samples all videos.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, size: int, reads: bool) -> None:
        self.folder, self.settings, self.reads = folder / FOLDER, dict(settings), reads
        self.keeps = size <= LARGEST
        self.used: set[Path] = set()
        """Files of this evaluation."""

    def read(self, batch: Mapping[str, Any]) -> Tensor | None:
        """The videos (B, F, 3, H, W) of a batch; None where they are missing, damaged, or not to be used.

        Args:
            batch: What the videos of the batch depend on besides the settings, as JSON values.
        """
        if not self.reads:
            return None
        try:
            videos = load_file(self._path(batch))["videos"]
        except (OSError, KeyError, SafetensorError):
            return None
        return videos if len(videos) == len(batch["seeds"]) else None

    def write(self, batch: Mapping[str, Any], videos: Tensor) -> None:
        """Keep the videos (B, F, 3, H, W) of a batch, unless the evaluation is too large.

        Raises:
            GuidedCDError: The disk is full.
        """
        if self.keeps:
            with replacing(self._path(batch)) as temporary:
                save_file({"videos": videos.contiguous()}, temporary)

    def note(self, batch: Mapping[str, Any]) -> None:
        """Remember that the evaluation has this batch."""
        self.used.add(self._path(batch))

    def tidy(self) -> None:
        """Delete the videos of other evaluations; to be called when evaluation.json is written."""
        if self.reads:
            return
        for path in self.folder.glob("*.safetensors"):
            if path not in self.used:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _path(self, batch: Mapping[str, Any]) -> Path:
        return self.folder / f"{digest({**self.settings, **batch})}.safetensors"
