"""The parts of VBench's dimensions that need no network, for flow fields, boxes and frames that are given.

Source: the VBench repository at 45e79ec. Legend: T frames, H height, W width. `guidedcd_metrics` has temporal
flickering and the rule of the dynamic degree.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import PurePath

import numpy as np

Box = Sequence[float]
"""Left, top, right and bottom, in pixels; y points down."""

HORIZONTAL = ("on the left of", "on the right of")
VERTICAL = ("on the top of", "on the bottom of")


def prompt_of(file: str) -> str:
    """The prompt in the name of a video: without folder, suffix and the index after the last "-"."""
    return re.sub(r"-\d+$", "", PurePath(file).stem)


def middle_frames(frames: int, count: int) -> list[int]:
    """Which frames dimensions with `count` frames read: the middle of equal intervals, the last one repeated.

    Args:
        frames: Frames of the video, T >= 1.
        count: Frames that are read: 16 for detection and captions, 8 for ViCLIP.
    """
    parts = min(frames, count)
    ends = np.linspace(0, frames, parts + 1).astype(int)
    middles = [int(start + end - 1) // 2 for start, end in itertools.pairwise(ends)]
    return middles + middles[-1:] * (count - parts)


def motion_smoothness(frames: np.ndarray, between: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> float:
    """VBench's score of a video, with any interpolation in the place of AMT; NaN for fewer than three frames.

    Every second frame is interpolated from its neighbours and compared with the true one. Of an even number of frames,
    the last is never compared.

    Args:
        frames: Pixels (T, H, W, 3), uint8.
        between: From two frames, the frame in the middle of them, uint8.

    Returns:
        1 minus the mean absolute error / 255, in [0, 1].
    """
    errors = [
        np.abs(between(first, second).astype(np.float64) - true).mean()
        for first, true, second in zip(frames[:-2:2], frames[1:-1:2], frames[2::2], strict=True)
    ]
    return 1 - float(np.mean(errors)) / 255 if errors else float("nan")


def position_score(relation: str, first: Box, second: Box) -> float:
    """How well two boxes have a relation such as "on the left of", in [0, 1].

    As in VBench, the direction is not read: left and right have the same score, and so have top and bottom.

    Args:
        relation: One of `HORIZONTAL` or `VERTICAL`.
        first: A box.
        second: The other box.
    """
    across, along = (abs(second[i] + second[i + 2] - first[i] - first[i + 2]) for i in (0, 1))
    holds = across > along if relation in HORIZONTAL else along > across
    if not holds:
        return 0.0
    overlap = intersection_over_union(first, second)
    return 1.0 if overlap < 0.1 else 0.1 / overlap


def intersection_over_union(first: Box, second: Box) -> float:
    """The area that two boxes share, relative to the area that they cover together."""
    sides = [max(0.0, min(first[i + 2], second[i + 2]) - max(first[i], second[i])) for i in (0, 1)]
    shared = sides[0] * sides[1]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / (sum(areas) - shared)


def frame_score(relation: str, names: tuple[str, str], boxes: Sequence[tuple[str, Box]]) -> float:
    """The best `position_score` of two boxes of a frame whose classes are among `names`, 0 without two.

    As in VBench, two boxes of the same class count as the pair.
    """
    own_boxes = [box for name, box in boxes if name in names]
    return max((position_score(relation, *pair) for pair in itertools.combinations(own_boxes, 2)), default=0.0)


def is_static(neighbours: Sequence[float], long: tuple[float, float], *, height: int, width: int) -> bool:
    """Whether the filter of temporal flickering keeps a video.

    Args:
        neighbours: The mean of the 2 % largest flow magnitudes of each pair of neighbouring frames (T - 1), in pixels.
        long: The same from the first to the last frame, and from the last to the first.
        height: In pixels.
        width: In pixels.
    """
    threshold = 3 * min(height, width) / 256
    allowed = round(2 * (len(neighbours) + 1) / 16)
    return sum(value > threshold for value in neighbours) <= allowed and max(long) <= 2 * allowed * threshold


def largest_magnitudes(flow: np.ndarray, share: float = 0.02) -> float:
    """The mean of the largest magnitudes of a flow field (2, H, W), in pixels: 2 % for the filter."""
    magnitudes = np.sort(np.hypot(flow[0], flow[1]).ravel())
    return float(magnitudes[-max(1, int(share * magnitudes.size)) :].mean())
