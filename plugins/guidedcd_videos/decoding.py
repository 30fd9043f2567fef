"""Decode the frames of a video file that a teacher needs, chosen by their timestamps.

Legend: F frames of the teacher, n frames of the video; a tick is the stream's time base.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import av
import numpy as np
import torch
from torch import Tensor

from guidedcd.data.buckets import ClipSize
from guidedcd.data.clips import ClipError
from guidedcd.data.geometry import Geometry
from guidedcd_videos.frames import fitted, shown_size

# Before version 19, PyAV raised at metadata that is not UTF-8 unless it was opened with this option, which 19 removed.
# The values are Any because one call passes them to every parameter of `av.open`.
_ANY_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


@attrs.frozen(eq=False)
class Timeline:
    """The time at which each frame of a video is shown."""

    ticks: np.ndarray
    """Start of each frame (n,), int64, ascending."""
    last: int
    """Duration of the last frame, in ticks."""
    tick: float
    """Length of a tick in seconds."""
    numbered: bool = False
    """Whether the file has no timestamps; `ticks` then count the frames in display order, at a constant rate."""

    @property
    def seconds(self) -> float:
        """Duration from the start of the first frame to the end of the last, in seconds."""
        return float(self.ticks[-1] + self.last - self.ticks[0]) * self.tick

    def choose(self, count: int, fps: float, begin: float, slow: bool = False) -> np.ndarray:
        """Ticks (count,) of the frames that are shown at `count` moments, 1 / fps apart.

        Args:
            count: Number of frames.
            fps: Moments per second of the video.
            begin: Position of the first moment in the spare time, in [0, 1]; it is moved to the start of a frame.
            slow: Spread the moments over a video that is too short, if it has at least `count` frames.

        Raises:
            ClipError: The video is too short.
        """
        spare = self.seconds - count / fps
        if not self._shows(count, fps):
            if not slow or len(self.ticks) < count:
                raise ClipError(
                    f"too short: {self.seconds:.3g} s with {len(self.ticks)} frames, "
                    f"but {count} frames at {fps:g} per second take {count / fps:.3g} s"
                )
            fps, spare = count / self.seconds, 0.0
        start = self._shown(np.array([self.ticks[0] + max(spare, 0.0) * begin / self.tick]))[0]
        return self._shown(start + np.arange(count) / fps / self.tick)

    def frames(self, fps: float) -> int:
        """The largest number of moments, 1 / fps apart, that `choose` takes without slowing the video down."""
        count = max(int(self.seconds * fps), 1)
        while self._shows(count + 1, fps):
            count += 1
        while count > 0 and not self._shows(count, fps):
            count -= 1
        return count

    def _shows(self, count: int, fps: float) -> bool:
        """Whether the video lasts for `count` moments; the last one may begin in its last tick."""
        return self.seconds >= count / fps or self.seconds > (count - 1) / fps + self.tick

    def _shown(self, moments: np.ndarray) -> np.ndarray:
        """Ticks of the frames shown at `moments`; half a tick, at most 1 ms, absorbs the rounding of timestamps."""
        indices = np.searchsorted(self.ticks, moments + min(0.5, 1e-3 / self.tick), side="right") - 1
        return self.ticks[indices.clip(0)]


def read_clip(source: Path | bytes, geometry: Geometry, *, fps: float, begin: float, slow: bool = False) -> Tensor:
    """Frames of a video (F, 3, H, W), float in [0, 1], in the teacher's size and frame rate.

    Args:
        source: A video file, or its content.
        geometry: Frames, height and width.
        fps: Frames per second of the video.
        begin: See `Timeline.choose`.
        slow: See `Timeline.choose`.

    Raises:
        ClipError: The file is missing, damaged, no video or too short; the message states which.
    """
    try:
        _check_exists(source)
        timeline, aspect = _timeline(source)
        ticks = timeline.choose(geometry.frames, fps, begin, slow)
        frames = _decoded(source, timeline, set(ticks.tolist()), geometry, aspect)
    except av.FFmpegError as error:
        raise ClipError(f"damaged or no video ({error.strerror or type(error).__name__})") from error
    except OSError as error:
        raise ClipError(f"cannot be read ({error.strerror or type(error).__name__})") from error
    return torch.stack([frames[tick] for tick in ticks.tolist()])


def read_size(source: Path | bytes, *, fps: float, slow: bool = False) -> ClipSize:
    """The size of a video as it is shown; only its first frame is decoded.

    Args:
        source: A video file, or its content.
        fps: Frames per second at which it is sampled.
        slow: Whether a video that is too short is slowed down.

    Raises:
        ClipError: As `read_clip`.
    """
    try:
        _check_exists(source)
        timeline, aspect = _timeline(source)
        with _open(source) as container:
            frame = next(container.decode(_stream(container)), None)
    except av.FFmpegError as error:
        raise ClipError(f"damaged or no video ({error.strerror or type(error).__name__})") from error
    except OSError as error:
        raise ClipError(f"cannot be read ({error.strerror or type(error).__name__})") from error
    if frame is None:
        raise ClipError("contains no frame")
    height, width = shown_size(frame, aspect)
    frames = timeline.frames(fps)
    return ClipSize(frames=max(frames, len(timeline.ticks)) if slow else frames, height=height, width=width)


def _check_exists(source: Path | bytes) -> None:
    if isinstance(source, Path) and not source.is_file():
        raise ClipError("the file is missing")
    if _size(source) == 0:
        raise ClipError("the file is empty")


def _size(source: Path | bytes) -> int:
    return os.path.getsize(source) if isinstance(source, Path) else len(source)


def _open(source: Path | bytes) -> av.container.InputContainer:
    file = str(source) if isinstance(source, Path) else io.BytesIO(source)
    return av.open(file, "r", **_ANY_METADATA)


def _stream(container: av.container.InputContainer) -> av.VideoStream:
    # FFmpeg calls the formats of still images "..._pipe"; such a file has no video, whatever its ending.
    if not container.streams.video or container.format.name.endswith("_pipe"):
        raise ClipError("contains no video stream")
    return container.streams.video[0]


def _timeline(source: Path | bytes) -> tuple[Timeline, float]:
    """Timestamps of all frames, without decoding any, and the aspect ratio of a pixel."""
    with _open(source) as container:
        stream = _stream(container)
        packets = [packet for packet in container.demux(stream) if packet.size]
        if not packets:
            raise ClipError("contains no frame")
        aspect = float(stream.sample_aspect_ratio or 1)
        tick, rate = float(stream.time_base or 0), float(stream.average_rate or 0)
        _check_complete(packets, stream, _size(source), tick)
        shown = [packet for packet in packets if not packet.is_discard]
        starts = [packet.pts for packet in shown]
        if tick and None not in starts:
            ticks = np.unique(np.array(starts, dtype=np.int64))
            typical = int(np.median(np.diff(ticks))) if len(ticks) > 1 else 1
            final = max(shown, key=lambda packet: packet.pts or 0)
            return Timeline(ticks, final.duration or typical, tick), aspect
    with _open(source) as container:
        count = sum(1 for _ in container.decode(_stream(container)))
    return Timeline(np.arange(count), 1, 1 / (rate or 25.0), numbered=True), aspect


def _check_complete(packets: list[av.Packet], stream: av.VideoStream, size: int, tick: float) -> None:
    """Refuse a file that ends before its own table of contents does."""
    if damaged := sum(packet.is_corrupt for packet in packets):
        raise ClipError(f"damaged: {len(packets) - damaged} of {stream.frames or '?'} frames are whole")
    ends = [packet.pos + packet.size for packet in packets if packet.pos is not None]
    if stream.frames > len(packets) and ends and max(ends) >= size:
        raise ClipError(f"cut off: {len(packets)} of {stream.frames} frames are there")


def _decoded(
    source: Path | bytes, timeline: Timeline, ticks: set[int], geometry: Geometry, aspect: float
) -> Mapping[int, Tensor]:
    """Frames (3, H, W) by tick."""
    frames: dict[int, Tensor] = {}
    # With a wrong index, seeking may land too late; the file is then read from its beginning.
    for enter in (min(ticks), None):
        with _open(source) as container:
            stream = _stream(container)
            if enter is not None and not timeline.numbered and enter > timeline.ticks[0]:
                container.seek(enter, stream=stream)
            for number, frame in enumerate(container.decode(stream)):
                tick = number if timeline.numbered else frame.pts
                if tick in ticks and tick not in frames:
                    if frame.is_corrupt:
                        raise ClipError(f"damaged: the frame at {tick * timeline.tick:.3g} s cannot be decoded")
                    frames[tick] = fitted(frame, geometry.height, geometry.width, aspect)
                if len(frames) == len(ticks):
                    return frames
        if timeline.numbered:
            break
    first = min(ticks - set(frames))
    raise ClipError(f"damaged: the frame at {first * timeline.tick:.3g} s cannot be decoded")
