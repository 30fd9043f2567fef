"""Frames as Qwen2-VL's patches, differentiably and with the published values.

Legend: B videos, F frames, H/W pixels, P patches, D values of a patch, t/h/w frames, rows and columns of patches.
"""

from __future__ import annotations

import attrs
import torch
import torch.nn.functional as nnf
from torch import Tensor

from guidedcd.devices import tensor_like
from guidedcd.rewards import pixels
from guidedcd_videoreward.protocol import PAIR, prepared_size

Grid = tuple[int, int, int]
"""(t, h, w) of one video."""


@attrs.frozen
class Preparation:
    """How frames become patches."""

    min_pixels: int
    """The least area of a frame after resizing, pixels."""
    max_pixels: int
    """The largest area of a frame after resizing, pixels."""
    rounding: bool = True
    """Round pixels to 8 bits; the gradient passes unchanged."""
    patch: int = 14
    """Side of a patch, pixels."""
    merge: int = 2
    """Patches along each side that become one token."""

    @property
    def factor(self) -> int:
        """The number that divides both sides of a frame, pixels."""
        return self.patch * self.merge

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of frames after resizing, pixels."""
        return prepared_size(height, width, self.factor, self.min_pixels, self.max_pixels)

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """The patches of a video with this number of frames and this size, before resizing."""
        height, width = self.size(height, width)
        return frames // PAIR, height // self.patch, width // self.patch

    def tokens(self, grid: Grid) -> int:
        """Tokens of a video."""
        t, h, w = grid
        return t * h * w // self.merge**2

    def frames(self, video: Tensor) -> Tensor:
        """Frames (..., 3, H, W) in [0, 1] -> resized frames (..., 3, H', W') in [0, 1], at least float32.

        The area is that of the network's input. As in the released code, the bicubic result is clamped and rounded as
        values from 0 to 255; the clamp has a gradient strictly inside only, the rounding has the gradient 1.
        """
        video = video if video.dtype == torch.float64 else video.float()
        height, width = self.size(*video.shape[-2:])
        scaled = video * 255
        if scaled.shape[-2:] != (height, width):
            flat = scaled.reshape(-1, *scaled.shape[-3:])
            flat = nnf.interpolate(flat, size=(height, width), mode="bicubic", align_corners=False, antialias=True)
            scaled = flat.reshape(*video.shape[:-2], height, width)
        # The gradient of `clamp` at 0 and at 255 is 1 in torch 2.8, and 0 in torch 2.14.
        inside = (scaled > 0) & (scaled < 255)
        scaled = torch.where(inside, scaled, scaled.detach().clamp(0, 255))
        if self.rounding:
            scaled = scaled + (scaled.round() - scaled).detach()
        return scaled / 255

    def __call__(self, video: Tensor) -> Tensor:
        """Frames (B, F, 3, H, W) in [0, 1], F even -> patches (P, D) of all videos, one after another.

        Rows are ordered by video, frame pair, then squares of merged patches; D by channel, frame, row, column.
        """
        frames = self.frames(video)
        mean, std = (tensor_like(values, frames).view(3, 1, 1) for values in (pixels.CLIP_MEAN, pixels.CLIP_STD))
        frames = (frames - mean) / std
        batch, count, channels, height, width = frames.shape
        rows, columns = height // self.factor, width // self.factor
        blocks = frames.reshape(
            batch * count // PAIR, PAIR, channels, rows, self.merge, self.patch, columns, self.merge, self.patch
        )
        return blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).flatten(5).flatten(0, 4)
