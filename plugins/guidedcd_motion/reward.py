"""The amount of motion: the mean speed of image structure that a local translation explains, up to a target.

Legend: B videos, F frames, P pairs of neighbouring frames, h/w pixels of the small frames.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from guidedcd_motion import MotionConfig

SIDE = 32
"""Short side of the frames in which motion is measured, in pixels; averaging over pixels removes noise."""
BLUR, WINDOW = 1.0, 3.0
"""Standard deviations of the blur of the frames, and of the window of one translation, in pixels of small frames."""
CONTRAST, FLOOR = 0.2, 0.05
"""Standard deviation that frames are scaled to, and the least one that they are assumed to have."""
SLOWEST = 1e-4
"""Speed that is added before the logarithm, so that a still video has a finite reward."""


class Motion(nn.Module):
    """-max(0, log(target / speed), log(speed / target) - margin), at most 0; captions are not read."""

    max_tokens = sys.maxsize

    def __init__(self, config: MotionConfig) -> None:
        """Keep the config."""
        super().__init__()
        self.config = config

    def count_tokens(self, text: str) -> int:
        """Words of `text`, of which any number is allowed."""
        return len(text.split())

    def forward(self, video: Tensor, captions: Sequence[str]) -> Tensor:
        """Frames (B, F, 3, H, W) in [0, 1] -> rewards (B,), float32."""
        with torch.autocast(video.device.type, enabled=False):
            distance = torch.log(speed(video) + SLOWEST) - math.log(self.config.target)
        return -torch.maximum(-distance, distance - self.config.margin).clamp(min=0)


def speed(video: Tensor) -> Tensor:
    """Mean speed of structure (B,), as a fraction of the short side per frame, of frames (B, F, 3, H, W) in [0, 1].

    In each pair of neighbouring frames, windows are fitted with one translation by the linearised brightness constancy
    of all channels (Lucas and Kanade, 1981). A window counts by the energy of its gradients, times the square of the
    share of the change that its translation explains. Each frame's mean colour is removed and its contrast is
    equalised before. Speeds above about 0.06 are underestimated.
    """
    batch, count = video.shape[:2]
    frames = prepared(video.flatten(0, 1).float()).unflatten(0, (batch, count))
    first, second = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)
    velocity, explained, texture = translations(first, second)
    magnitude = (velocity.square().sum(1) + 1e-8).sqrt()
    weights = texture * explained.square()
    mean = (weights * magnitude).sum((1, 2)) / (texture.sum((1, 2)) + 1e-3)
    return mean.view(batch, count - 1).mean(1) / min(frames.shape[-2:])


def prepared(frames: Tensor) -> Tensor:
    """Frames (N, 3, H, W) -> small, blurred frames (N, 3, h, w) of mean 0 and equal contrast."""
    height, width = frames.shape[-2:]
    scale = SIDE / min(height, width)
    size = (max(round(height * scale), 1), max(round(width * scale), 1))
    small = nnf.interpolate(frames, size=size, mode="bilinear", antialias=True, align_corners=False)
    small = blurred(small, BLUR)
    small = small - small.mean((2, 3), keepdim=True)
    return small * CONTRAST / (small.square().mean((1, 2, 3), keepdim=True) + FLOOR**2).sqrt()


def translations(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The translation of every window between two frames (P, 3, h, w).

    Returns:
        Velocity (P, 2, h, w) in pixels per frame, the share of the change that it explains (P, h, w) in [0, 1], and
        the energy of the gradients (P, h, w).
    """
    mean = nnf.pad((first + second) / 2, (1, 1, 1, 1), mode="replicate")
    dx = (mean[..., 1:-1, 2:] - mean[..., 1:-1, :-2]) / 2
    dy = (mean[..., 2:, 1:-1] - mean[..., :-2, 1:-1]) / 2
    dt = second - first
    pairs = ((dx, dx), (dx, dy), (dy, dy), (dx, dt), (dy, dt), (dt, dt))
    products = torch.stack([(one * other).sum(1) for one, other in pairs], dim=1)
    xx, xy, yy, xt, yt, tt = blurred(products, WINDOW).unbind(1)
    texture, xx, yy = xx + yy, xx + 1e-4, yy + 1e-4  # keeps the velocity of flat regions near 0
    determinant = xx * yy - xy * xy
    velocity = torch.stack([xy * yt - yy * xt, xy * xt - xx * yt], dim=1) / determinant.unsqueeze(1)
    explained = -(velocity[:, 0] * xt + velocity[:, 1] * yt) / (tt + 1e-5)
    return velocity, explained, texture


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Images (N, C, h, w) averaged with a Gaussian of standard deviation `sigma` pixels, with repeated borders."""
    radius, channels = math.ceil(3 * sigma), images.shape[1]
    positions = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-positions.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = nnf.pad(images, (radius, radius, radius, radius), mode="replicate")
    for shape in ((1, 1, -1, 1), (1, 1, 1, -1)):
        padded = nnf.conv2d(padded, kernel.view(shape).expand(channels, -1, -1, -1), groups=channels)
    return padded
