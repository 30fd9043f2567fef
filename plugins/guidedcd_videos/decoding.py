"""A video file to the teacher's frames: which ones, by their real timestamps, and how they are decoded.

Legend: F frames of the teacher, n frames of the video; a tick is the stream's time base.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path

import attrs
import av
import numpy as np
import torch
from torch import Tensor

from guidedcd.data.clips import ClipError
from guidedcd.data.geometry import Geometry
from guidedcd_videos.frames import fitted


@attrs.frozen(eq=False)
class Timeline:
    """When each frame of a video is shown."""

    ticks: np.ndarray
    """Start of each frame (n,), int64, ascending."""
    last: int
    """How many ticks the last frame is shown."""
    tick: float
    """Seconds."""
    numbered: bool = False
    """The file has no timestamps: `ticks` number the frames in the order of display, at a constant rate."""

    @property
    def seconds(self) -> float:
        """From the first frame's start to the last one's end."""
        return float(self.ticks[-1] + self.last - self.ticks[0]) * self.tick

    def choose(self, count: int, fps: float, begin: float, slow: bool = False) -> np.ndarray:
        """The frames (count,) that are on the screen at `count` moments, 1 / fps apart, as ticks.

        Args:
            count: How many.
            fps: Moments per second of the video.
            begin: Where in the time to spare the first one lies, in [0, 1]; it is moved to a frame's start.
            slow: Spread the moments over a video that is too short, if it has at least `count` frames.

        Raises:
            ClipError: The video is too short.
        """
        spare = self.seconds - count / fps
        if spare < 0 and self.seconds <= (count - 1) / fps + self.tick:
            if not slow or len(self.ticks) < count:
                raise ClipError(
                    f"too short: {self.seconds:.3g} s with {len(self.ticks)} frames, "
                    f"but {count} frames at {fps:g} per second take {count / fps:.3g} s"
                )
            fps, spare = count / self.seconds, 0.0
        start = self._shown(np.array([self.ticks[0] + max(spare, 0.0) * begin / self.tick]))[0]
        return self._shown(start + np.arange(count) / fps / self.tick)

    def _shown(self, moments: np.ndarray) -> np.ndarray:
        """Start of the frames shown at `moments`; half a tick, at most 1 ms, absorbs the rounding of timestamps."""
        places = np.searchsorted(self.ticks, moments + min(0.5, 1e-3 / self.tick), side="right") - 1
        return self.ticks[places.clip(0)]


def read_clip(source: Path | bytes, geometry: Geometry, *, fps: float, begin: float, slow: bool = False) -> Tensor:
    """The part of a video that a teacher is shown: (F, 3, H, W), float in [0, 1].

    Args:
        source: A file, or the content of one.
        geometry: Frames, height and width.
        fps: Frames per second of the video's own time.
        begin: See `Timeline.choose`.
        slow: See `Timeline.choose`.

    Raises:
        ClipError: The file is missing, damaged, no video or too short; says which.
    """
    try:
        _exists(source)
        timeline, aspect = _timeline(source)
        wanted = timeline.choose(geometry.frames, fps, begin, slow)
        found = _decoded(source, timeline, set(wanted.tolist()), geometry, aspect)
    except av.FFmpegError as error:
        raise ClipError(f"damaged or no video ({error.strerror or type(error).__name__})") from error
    except OSError as error:
        raise ClipError(f"cannot be read ({error.strerror or type(error).__name__})") from error
    return torch.stack([found[tick] for tick in wanted.tolist()])


def _exists(source: Path | bytes) -> None:
    if isinstance(source, Path) and not source.is_file():
        raise ClipError("the file is missing")
    if _size(source) == 0:
        raise ClipError("the file is empty")


def _size(source: Path | bytes) -> int:
    return os.path.getsize(source) if isinstance(source, Path) else len(source)


def _open(source: Path | bytes) -> av.container.InputContainer:
    return av.open(str(source) if isinstance(source, Path) else io.BytesIO(source), metadata_errors="replace")


def _stream(container: av.container.InputContainer) -> av.VideoStream:
    # Names of pictures are "pipes": a file that is one still image has no video, whatever its ending.
    if not container.streams.video or container.format.name.endswith("_pipe"):
        raise ClipError("holds no video stream")
    return container.streams.video[0]


def _timeline(source: Path | bytes) -> tuple[Timeline, float]:
    """Timestamps of all frames without decoding any, and the pixels' aspect."""
    with _open(source) as container:
        stream = _stream(container)
        packets = [packet for packet in container.demux(stream) if packet.size]
        if not packets:
            raise ClipError("holds no frame")
        aspect = float(stream.sample_aspect_ratio or 1)
        tick, rate = float(stream.time_base or 0), float(stream.average_rate or 0)
        _complete(packets, stream, _size(source), tick)
        shown = [packet for packet in packets if not packet.is_discard]
        starts = [packet.pts for packet in shown]
        if tick and None not in starts:
            ticks = np.unique(np.array(starts, dtype=np.int64))
            usual = int(np.median(np.diff(ticks))) if len(ticks) > 1 else 1
            final = max(shown, key=lambda packet: packet.pts)
            return Timeline(ticks, final.duration or usual, tick), aspect
    with _open(source) as container:
        count = sum(1 for _ in container.decode(_stream(container)))
    return Timeline(np.arange(count), 1, 1 / (rate or 25.0), numbered=True), aspect


def _complete(packets: list[av.Packet], stream: av.VideoStream, size: int, tick: float) -> None:
    """Refuse a file that ends before its own table of contents does."""
    if torn := sum(packet.is_corrupt for packet in packets):
        raise ClipError(f"damaged: {len(packets) - torn} of {stream.frames or '?'} frames are whole")
    ends = [packet.pos + packet.size for packet in packets if packet.pos is not None]
    if stream.frames > len(packets) and ends and max(ends) >= size:
        raise ClipError(f"cut off: {len(packets)} of {stream.frames} frames are there")


def _decoded(
    source: Path | bytes, timeline: Timeline, wanted: set[int], geometry: Geometry, aspect: float
) -> Mapping[int, Tensor]:
    """Frames (3, H, W) by tick."""
    found: dict[int, Tensor] = {}
    # A file whose index is wrong may be entered too late; then it is read from its beginning.
    for enter in (min(wanted), None):
        with _open(source) as container:
            stream = _stream(container)
            if enter is not None and not timeline.numbered and enter > timeline.ticks[0]:
                container.seek(enter, stream=stream)
            for number, frame in enumerate(container.decode(stream)):
                tick = number if timeline.numbered else frame.pts
                if tick in wanted and tick not in found:
                    if frame.is_corrupt:
                        raise ClipError(f"damaged: the frame at {tick * timeline.tick:.3g} s cannot be decoded")
                    found[tick] = fitted(frame, geometry.height, geometry.width, aspect)
                if len(found) == len(wanted):
                    return found
        if timeline.numbered:
            break
    first = min(wanted - set(found))
    raise ClipError(f"damaged: the frame at {first * timeline.tick:.3g} s cannot be decoded")
