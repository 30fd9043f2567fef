"""Statistics of videos that change when a reward is over-optimised: colours, contrast, flicker, motion, diversity.

Legend: B videos (B, F, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from guidedcd.devices import tensor_like

THUMBNAIL = 16
"""Size at which videos are compared with each other."""


@torch.no_grad()
def statistics(videos: Tensor) -> dict[str, Tensor]:
    """Statistics (B,) of each video, on the CPU.

    `saturation` is the mean range of the three colours of a pixel, `brightness` the mean luminance (Rec. 709),
    `contrast` its standard deviation over the pixels of a frame. `change` is the mean absolute difference of
    successive frames, `flicker` that of second differences, which steady motion hardly has. `diversity` is the mean
    absolute difference to the other videos, each reduced to 16 pixels. Videos of one or two frames have the values 0
    where there is nothing to compare.
    """
    videos = videos.float()
    luminance = (videos * tensor_like([0.2126, 0.7152, 0.0722], videos).view(3, 1, 1)).sum(2)
    values = {
        "saturation": (videos.amax(2) - videos.amin(2)).flatten(1).mean(1),
        "brightness": luminance.flatten(1).mean(1),
        "contrast": luminance.flatten(2).std(2).mean(1),
        "change": _mean(videos.diff(dim=1).abs()),
        "flicker": _mean(videos.diff(n=2, dim=1).abs()),
        "diversity": _diversity(videos),
    }
    return {name: value.cpu() for name, value in values.items()}


def _mean(differences: Tensor) -> Tensor:
    """The mean of each video (B,), 0 where it has no differences."""
    flat = differences.flatten(1)
    return flat.mean(1) if flat.shape[1] else flat.new_zeros(len(flat))


def _diversity(videos: Tensor) -> Tensor:
    """The mean absolute difference (B,) of each video to the others, 0 for a single one."""
    small = functional.adaptive_avg_pool2d(videos.flatten(0, 1), THUMBNAIL).unflatten(0, videos.shape[:2]).flatten(1)
    others = max(len(small) - 1, 1)
    return torch.cdist(small, small, p=1).sum(1) / (others * small.shape[1])
