"""Frames as the viewer sees them, in the teacher's size: display matrix, pixel aspect, resize, centre crop.

Legend: H, W of the teacher; h, w of the source, in pixels.
"""

from __future__ import annotations

from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from guidedcd.data.framing import cover


def fitted(frame: av.VideoFrame, height: int, width: int, aspect: float = 1.0) -> Tensor:
    """One decoded frame as (3, H, W), float in [0, 1].

    Args:
        frame: A decoded frame.
        height: H, in pixels.
        width: W, in pixels.
        aspect: Width of a pixel over its height.
    """
    image = frame.reformat(format="rgb24").to_ndarray()
    image, turned = upright(image, display_matrix(frame))
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255
    return cover(pixels, height, width, 1 / aspect if turned else aspect)


def shown_size(frame: av.VideoFrame, aspect: float = 1.0) -> tuple[int, float]:
    """Height and width of a frame as it is shown, in pixels that are square.

    Args:
        frame: A decoded frame.
        aspect: Width of a pixel over its height.
    """
    _, turned = upright(np.empty((1, 1, 3), np.uint8), display_matrix(frame))
    return (frame.width, frame.height / aspect) if turned else (frame.height, frame.width * aspect)


def display_matrix(frame: av.VideoFrame) -> np.ndarray | None:
    """Rotation of the frame for display, (2, 2): x' = a x + c y, y' = b x + d y for rows (a, b), (c, d)."""
    # By name: iteration yields entries before PyAV 19 and types since.
    side: Any = frame.side_data.get("DISPLAYMATRIX")  # a buffer, which PyAV's stubs do not declare
    return None if side is None else np.frombuffer(bytes(side), dtype=np.int32)[:9].reshape(3, 3)[:2, :2] / 65536


def upright(image: np.ndarray, matrix: np.ndarray | None) -> tuple[np.ndarray, bool]:
    """The image (h, w, 3) rotated by quarter turns and mirrored by `matrix`, and whether its axes were swapped."""
    if matrix is None:
        return image, False
    (a, b), (c, d) = matrix
    swapped = bool(abs(b) + abs(c) > abs(a) + abs(d))
    if swapped:
        image, a, d = image.transpose(1, 0, 2), c, b
    if a < 0:
        image = image[:, ::-1]
    if d < 0:
        image = image[::-1]
    return image, swapped
