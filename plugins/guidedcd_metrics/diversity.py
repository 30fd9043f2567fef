"""How much the videos of one prompt differ from each other, over the seeds of an evaluation.

Legend: B videos, F frames, S seeds, P prompts, D numbers that describe a video.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from guidedcd_metrics import DiversityConfig

THUMBNAIL, FRAMES = 16, 4
"""Size in pixels and number of the frames that are compared."""


class Diversity:
    """Value `diversity`: the mean absolute difference of a video to those of its prompt from other seeds, in [0, 1].

    Videos are compared as four evenly spaced frames of 16 pixels. A prompt with one video has no value (NaN).
    """

    titles: ClassVar = {"diversity": "difference between the videos of one prompt from several seeds"}
    better: ClassVar = {"diversity": "higher"}

    def __init__(self, config: DiversityConfig) -> None:
        """Ignore the config, which has no options."""

    def __call__(self, videos: Tensor, prompts: Sequence[object]) -> dict[str, Tensor]:
        """No value (B,) for a video alone: NaN."""
        return {"diversity": torch.full((len(videos),), float("nan"))}

    def features(self, videos: Tensor) -> Tensor:
        """The pixels that are compared (B, D), of videos (B, F, 3, H, W) in [0, 1]."""
        frames = torch.linspace(0, videos.shape[1] - 1, FRAMES).round().long()
        chosen = videos[:, frames].float()
        return functional.adaptive_avg_pool2d(chosen.flatten(0, 1), THUMBNAIL).reshape(len(videos), -1)

    def across(self, features: Tensor) -> dict[str, Tensor]:
        """Values (S, P) of features (S, P, D)."""
        seeds = len(features)
        if seeds < 2:
            return {"diversity": torch.full(features.shape[:2], float("nan"))}
        by_prompt = features.transpose(0, 1)
        distances = torch.cdist(by_prompt, by_prompt, p=1) / features.shape[2]
        return {"diversity": distances.sum(2).T / (seeds - 1)}
