"""Finished batches of an evaluation, kept in a hidden folder until evaluation.json is written.

An evaluation that is interrupted continues with them. A batch is found by a digest of all that its videos and scores
depend on, so a batch of other settings is never used.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from guidedcd.files import digest, leftovers, replacing

FOLDER = ".evaluation"
"""Name of the folder, beside evaluation.json."""
SECONDS = "seconds"


@attrs.frozen(kw_only=True, eq=False)
class BatchResult:
    """The results of one batch of videos."""

    seconds: float
    """Time of sampling and decoding."""
    scores: Mapping[str, Mapping[str, list[float]]] = attrs.field(factory=dict)
    """Scores of the videos (B) by metric and name."""
    videos: Mapping[int, Tensor] = attrs.field(factory=dict)
    """Videos (F, 3, H, W) for the report, by index of their prompt."""
    features: Mapping[str, Tensor] = attrs.field(factory=dict)
    """Features (B, D) of the videos, by the metric that compares them."""


class FinishedBatches:
    """The finished batches of one evaluation.

    Args:
        folder: The folder of the evaluation's results.
        settings: All that every batch depends on, as JSON values.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.root = folder / FOLDER
        self.folder = self.root / digest(settings)

    def __len__(self) -> int:
        """Number of batches with these settings."""
        return len(list(self.folder.glob("*.safetensors")))

    def read(self, batch: Mapping[str, Any]) -> BatchResult | None:
        """The results of a batch, or None where it is missing or its file is damaged.

        Args:
            batch: What this batch depends on besides the settings, as JSON values.
        """
        try:
            tensors = load_file(self._path(batch))
            seconds = float(tensors.pop(SECONDS))
        except (OSError, KeyError, SafetensorError):
            return None
        scores: dict[str, dict[str, list[float]]] = {}
        videos: dict[int, Tensor] = {}
        features: dict[str, Tensor] = {}
        for key, tensor in sorted(tensors.items()):
            kind, number, *names = key.split("/", 3)
            if kind == "video":
                videos[int(number)] = tensor
            elif kind == "features":
                features[unquote(number)] = tensor
            else:
                metric, score = names
                scores.setdefault(unquote(metric), {})[score] = tensor.tolist()
        return BatchResult(seconds=seconds, scores=scores, videos=videos, features=features)

    def write(self, batch: Mapping[str, Any], result: BatchResult) -> None:
        """Keep the results of a batch.

        Raises:
            GuidedCDError: The disk is full.
        """
        tensors = {f"video/{index}": video.contiguous() for index, video in result.videos.items()}
        scores = [(metric, name, values) for metric, one in result.scores.items() for name, values in one.items()]
        for number, (metric, name, values) in enumerate(scores):  # the number keeps their order
            tensors[f"score/{number:04d}/{quote(metric, safe='')}/{name}"] = torch.tensor(values, dtype=torch.float64)
        tensors |= {f"features/{quote(name, safe='')}": one.contiguous() for name, one in result.features.items()}
        tensors[SECONDS] = torch.tensor(result.seconds, dtype=torch.float64)
        with replacing(self._path(batch)) as temporary:
            save_file(tensors, temporary)

    def remove(self) -> None:
        """Delete all batches, also those of other settings; to be called when evaluation.json is written."""
        leftovers(self.root)
        shutil.rmtree(self.root, ignore_errors=True)

    def _path(self, batch: Mapping[str, Any]) -> Path:
        return self.folder / f"{digest(batch)}.safetensors"
