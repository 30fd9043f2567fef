"""The published protocol of VideoReward's input: how many frames, which ones, and their size. No torch at import."""

from __future__ import annotations

import math

from guidedcd.errors import GuidedCDError

PAIR = 2
"""Frames that the network joins into one patch."""
FEWEST, MOST = 4, 768
"""Bounds of the number of frames that the rate gives."""
FLATTEST = 200
"""The largest ratio of the sides of a frame."""


def sampled_count(total: int, clip_fps: float, fps: float) -> int:
    """Frames picked at `fps` from a clip of `total` frames at `clip_fps`, frames per second; it may be out of range.

    The number is even, at least `FEWEST` and at most `MOST`, and never above the even part of `total`.
    """
    count = min(max(total / clip_fps * fps, FEWEST), min(MOST, total) // PAIR * PAIR)
    return min(round(count / PAIR) * PAIR, total)


def rounded_count(total: int, frames: int) -> int:
    """A stated number of frames as the released code takes it: rounded half to even in pairs, at most `total`."""
    return min(round(frames / PAIR) * PAIR, total)


def even_count(total: int, frames: int) -> int:
    """`rounded_count` without the odd last frame, with which the released code fails."""
    return rounded_count(total, frames) // PAIR * PAIR


def prepared_size(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Height and width of a frame after resizing: multiples of `factor` whose area is within the two limits.

    Raises:
        GuidedCDError: The frame is too narrow.
    """
    if max(height, width) > FLATTEST * min(height, width):
        raise GuidedCDError(
            f"frames of {height}x{width} pixels are too narrow: their sides may differ {FLATTEST}-fold at most"
        )
    sides = [max(factor, round(side / factor) * factor) for side in (height, width)]
    if sides[0] * sides[1] > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        sides = [math.floor(side / shrink / factor) * factor for side in (height, width)]
    elif sides[0] * sides[1] < min_pixels:
        enlarge = math.sqrt(min_pixels / (height * width))
        sides = [math.ceil(side * enlarge / factor) * factor for side in (height, width)]
    if not min(sides):
        raise GuidedCDError(
            f"frames of {height}x{width} pixels cannot be resized to multiples of {factor} with at most {max_pixels} "
            "pixels; raise the option max_pixels"
        )
    return sides[0], sides[1]
