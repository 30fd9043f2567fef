"""VBench's temporal flickering: the only one of its dimensions that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from guidedcd_metrics import FlickerConfig


class Flicker:
    """(255 - mean absolute difference of neighbouring 8-bit frames) / 255, in [0, 1], 1 is a frozen video.

    VBench applies it to videos of static scenes only: real motion counts as flicker, so compare videos that move
    alike. A video of one frame has no value (NaN), as in VBench.
    """

    titles: ClassVar = {"temporal_flickering": "temporal flickering (VBench; 1 is none, but motion lowers it too)"}

    def __init__(self, config: FlickerConfig) -> None:
        """Take the config; there is nothing to set."""

    def __call__(self, videos: Tensor, prompts: Sequence[object] = ()) -> dict[str, Tensor]:
        """`temporal_flickering` of each video, (B,) float64 on the CPU, from (B, F, 3, H, W) in [0, 1]."""
        frames = (videos.float().clamp(0, 1) * 255).round().to(torch.int16)
        moved = (frames[:, 1:] - frames[:, :-1]).abs().sum(dim=(1, 2, 3, 4), dtype=torch.int64).cpu().double()
        return {"temporal_flickering": 1 - moved / (255 * frames[0, 1:].numel())}
