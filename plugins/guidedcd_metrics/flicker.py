"""Temporal flickering, the only dimension of VBench that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from guidedcd_metrics import FlickerConfig


class Flicker:
    """(255 - mean absolute difference of neighbouring 8-bit frames) / 255, in [0, 1]; 1 is a frozen video.

    Real motion counts as flicker. VBench applies it to static scenes only; compare videos with the same motion. A video
    of one frame has no value (NaN), as in VBench.
    """

    titles: ClassVar = {"temporal_flickering": "temporal flickering (VBench; 1 is none, but motion lowers it too)"}

    def __init__(self, config: FlickerConfig) -> None:
        """Ignore the config, which has no options."""

    def __call__(self, videos: Tensor, prompts: Sequence[object] = ()) -> dict[str, Tensor]:
        """`temporal_flickering` of each video, (B,) float64 on the CPU, from (B, F, 3, H, W) in [0, 1]."""
        frames = (videos.float().clamp(0, 1) * 255).round().to(torch.int16)
        change = (frames[:, 1:] - frames[:, :-1]).abs().sum(dim=(1, 2, 3, 4), dtype=torch.int64).cpu().double()
        return {"temporal_flickering": 1 - change / (255 * frames[0, 1:].numel())}
