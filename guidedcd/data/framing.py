"""Videos in the size and frame rate of a teacher.

Legend: F frames, H, W of the teacher; h, w of the source, in pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from guidedcd.data.clips import ClipError
from guidedcd.data.geometry import Geometry
from guidedcd.data.media import read_metadata, read_video, sidecar
from guidedcd.errors import GuidedCDError

LARGEST = 64
"""Largest ratio of a scaled frame's pixels to the target's; the crop of a larger one would show hardly anything."""


def cover(image: Tensor, height: int, width: int, aspect: float = 1.0) -> Tensor:
    """(..., 3, h, w) -> (..., 3, H, W): scaled with antialiasing to cover the target, then cropped at the centre."""
    h, w = image.shape[-2], image.shape[-1] * aspect
    scale = max(height / h, width / w)
    size = max(height, round(h * scale)), max(width, round(w * scale))
    if size[0] * size[1] > LARGEST * height * width:
        raise ClipError(f"has frames of {image.shape[-1]}x{image.shape[-2]}, too narrow for {width}x{height}")
    if size != tuple(image.shape[-2:]):
        flat = image.reshape(-1, *image.shape[-3:])
        flat = nnf.interpolate(flat, size, mode="bilinear", align_corners=False, antialias=True)
        image = flat.reshape(*image.shape[:-2], *size)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return image[..., top : top + height, left : left + width].clamp(0, 1)


def moments(frames: int, source_fps: float, geometry: Geometry) -> Tensor:
    """Indices (F,) of the source frames that are shown at the teacher's frame rate, from the first one.

    A source that is too short, but has F frames, is slowed down to its whole length.

    Args:
        frames: Frames of the source.
        source_fps: Its frames per second; 0 if unknown, then its frames are taken one by one.
        geometry: Frames and frame rate of the teacher.

    Raises:
        GuidedCDError: The source has fewer frames than the teacher's videos.
    """
    count = geometry.frames
    if frames < count:
        raise GuidedCDError(f"has {frames} frames, but a video of this teacher has {count}.")
    step = source_fps / geometry.fps if source_fps > 0 else 1.0
    if (count - 1) * step > frames - 1 + 1e-3:
        step = (frames - 1) / max(count - 1, 1)
    return (torch.arange(count, dtype=torch.float64) * step + 1e-3).floor().long().clamp(max=frames - 1)


def read_unenlarged(path: Path) -> tuple[Tensor, float, dict[str, Any]]:
    """A video file, reduced to its own pixels if `guidedcd sample` enlarged it.

    Returns:
        (pixels (F, 3, h, w) in [0, 1], frames per second, the metadata beside the file)

    Raises:
        GuidedCDError: The file is missing, or it or its metadata is damaged; names the file.
    """
    video, fps = read_video(path)
    metadata = read_metadata(path) if path.suffix == ".mp4" and sidecar(path).is_file() else {}
    factor = int(metadata.get("enlarge", 1))
    if factor > 1:
        video = video[..., factor // 2 :: factor, factor // 2 :: factor]
    return video, fps, metadata


def read_framed(path: Path, geometry: Geometry) -> tuple[Tensor, str | None]:
    """A video file in the size and frame rate of a teacher, from its beginning, and the prompt in its metadata.

    A video that `guidedcd sample` enlarged is reduced to its own pixels first.

    Args:
        path: Any video file.
        geometry: The teacher's videos.

    Returns:
        (pixels (F, 3, H, W) in [0, 1], the prompt that made it or None)

    Raises:
        GuidedCDError: The file is missing, damaged, too short or far too narrow; names the file.
    """
    video, fps, metadata = read_unenlarged(path)
    try:
        video = video[moments(len(video), fps, geometry)]
        return cover(video, geometry.height, geometry.width).contiguous(), metadata.get("prompt")
    except GuidedCDError as error:
        raise GuidedCDError(f"{path} {error}") from error
