"""Video files: mp4 (H.264) and gif with metadata files beside them, and contact sheets.

Legend: F frames, H height, W width. Pixels are (F, 3, H, W), float in [0, 1].
"""

from __future__ import annotations

import base64
import bisect
import io
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError, unwritable
from guidedcd.files import replacing, write_json

SUFFIXES = (".mp4", ".gif")


def to_uint8(video: Tensor) -> np.ndarray:
    """Pixels (F, H, W, 3) uint8, rounded, from (F, 3, H, W) float in [0, 1].

    Raises:
        GuidedCDError: The shape is another one, or a pixel is not finite.
    """
    if video.ndim != 4 or video.shape[1] != 3 or 0 in video.shape:
        raise GuidedCDError(f"a video must have shape (frames, 3, height, width), not {tuple(video.shape)}.")
    video = video.detach().float().cpu()
    if not torch.isfinite(video).all():
        raise GuidedCDError("a video contains pixels that are NaN or infinite; it was not written.")
    return (video.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def viewing_factor(height: int, width: int, size: int = 256) -> int:
    """The integer by which a small video is enlarged for viewing: its short side comes to about `size` pixels."""
    return max(1, round(size / min(height, width)))


def enlarged(frames: np.ndarray, factor: int) -> np.ndarray:
    """Repeat every pixel `factor` times in both directions: (F, H, W, 3) -> (F, H factor, W factor, 3)."""
    return frames if factor == 1 else frames.repeat(factor, axis=1).repeat(factor, axis=2)


def write_video(
    path: Path,
    video: Tensor,
    *,
    fps: float,
    enlarge: int = 1,
    quality: int = 14,
    metadata: Mapping[str, Any] | None = None,
    record: Path | None = None,
) -> Path:
    """Write one video as mp4 or gif, by the suffix of `path`, and its metadata as JSON beside an mp4.

    An mp4 is H.264 in yuv420p, which every player and browser supports; its colour has half the resolution, so
    that edges of small videos are sharper when enlarged. Odd sizes are padded by repeating the last row or column, and
    `read_video` removes the padding. The metadata is written last: a video with metadata is complete.

    Args:
        path: A file that ends in .mp4 or .gif.
        video: Pixels (F, 3, H, W) in [0, 1].
        fps: Frames per second.
        enlarge: Repeat every pixel this often in both directions (nearest neighbour), >= 1.
        quality: x264's constant rate factor, 0 (best) to 51.
        metadata: Further metadata; size, frames and fps are always written.
        record: The file of the metadata of an mp4, by default beside it.

    Raises:
        GuidedCDError: The suffix or the shape is another one, or the disk is full.
    """
    if path.suffix not in SUFFIXES:
        raise GuidedCDError(f"{path}: videos are written as {' or '.join(SUFFIXES)}, not '{path.suffix}'.")
    frames, record = enlarged(to_uint8(video), enlarge), record or sidecar(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".mp4":
            record.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(error, path) from error
    with replacing(path) as partial:
        if path.suffix == ".mp4":
            write_mp4(partial, frames, fps, quality)
        else:
            partial.write_bytes(gif_bytes(frames, fps))
    if path.suffix == ".mp4":
        sizes = {
            "frames": len(frames),
            "height": frames.shape[1],
            "width": frames.shape[2],
            "fps": fps,
            "enlarge": enlarge,
        }
        write_json(record, {**(metadata or {}), **sizes})
    return path


def sidecar(path: Path) -> Path:
    """The metadata file of a video: the same name with the suffix .json."""
    return path.with_suffix(".json")


def write_mp4(path: Path, frames: np.ndarray, fps: float, quality: int = 14) -> None:
    """Encode (F, H, W, 3) uint8 as H.264 in mp4, playable while it loads; the same bytes for the same frames."""
    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        # Some of the algorithms that x264 chooses for the processor are not deterministic.
        steady = {"threads": "1", "x264-params": "cpu-independent=1"}
        stream.options = {"crf": str(quality), "preset": "medium", **steady}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def gif_bytes(frames: np.ndarray, fps: float) -> bytes:
    """Encode (F, H, W, 3) uint8 as an endless gif with one palette; a frame lasts a multiple of 10 ms, at least 20."""
    strip = Image.fromarray(frames.reshape(-1, *frames.shape[2:]))
    palette = strip.quantize(256, method=Image.Quantize.MEDIANCUT)
    images = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    buffer = io.BytesIO()
    duration = max(20, round(100 / fps) * 10)
    images[0].save(
        buffer, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0, optimize=False, disposal=1
    )
    return buffer.getvalue()


def read_video(path: Path) -> tuple[Tensor, float]:
    """Pixels (F, 3, H, W) in [0, 1] and frames per second of any video file, without the padding of odd sizes.

    Raises:
        GuidedCDError: The file is missing or damaged, or contains no frame.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise GuidedCDError(f"{path} contains no video.")
            stream = container.streams.video[0]
            fps = float(stream.average_rate or stream.guessed_rate or 0)
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    except FileNotFoundError:
        raise GuidedCDError(f"{path} is missing.") from None
    except (av.FFmpegError, OSError) as error:
        raise GuidedCDError(f"{path} could not be read as a video: {error}.") from error
    if not frames:
        raise GuidedCDError(f"{path} contains no frame.")
    video = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
    if path.suffix == ".mp4" and sidecar(path).is_file():
        metadata = read_metadata(path)
        video = video[..., : metadata.get("height", video.shape[2]), : metadata.get("width", video.shape[3])]
    return video, fps


METADATA = {
    "prompt?": str,
    "seed?": int,
    "step?": int,
    "height?": int,
    "width?": int,
    "frames?": int,
    "fps?": float,
    "enlarge?": int,
}
"""Form of the metadata of a video; see `guidedcd.documents`."""


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a video.

    Raises:
        GuidedCDError: Its file is damaged.
    """
    return read_json(sidecar(path), METADATA)


def data_uri(content: bytes, kind: str) -> str:
    """`content` as a data: address of media type `kind`, for a page that loads nothing from elsewhere."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def contact_sheet(
    path: Path, videos: Sequence[Tensor], captions: Sequence[str], *, frames: int = 8, size: int = 96
) -> Path:
    """Write a PNG with one row per video: its caption above `frames` evenly spaced frames, each about `size` high.

    Args:
        path: A file that ends in .png.
        videos: Pixels (F, 3, H, W) in [0, 1]; sizes may differ.
        captions: One text per video.
        frames: At most this many frames per row.
        size: Height of each frame in pixels; small frames are enlarged by a whole factor.

    Raises:
        GuidedCDError: There are no videos, or the disk is full.
    """
    if not videos:
        raise GuidedCDError("a contact sheet needs at least one video.")
    font = ImageFont.load_default(13)
    rows = [_strip(to_uint8(video), frames, size) for video in videos]
    gap, text = 4, 20
    width = max(320, *(row.width for row in rows)) + 2 * gap
    height = sum(row.height + text + gap for row in rows) + gap
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    y = gap
    for row, caption in zip(rows, captions, strict=True):
        draw.text((gap, y + 1), _fitted(caption, font, width - 2 * gap), fill="black", font=font)
        sheet.paste(row, (gap, y + text))
        y += row.height + text + gap
    with replacing(path) as partial:
        sheet.save(partial, "PNG")
    return path


def _strip(pixels: np.ndarray, count: int, size: int) -> Image.Image:
    """Evenly spaced frames side by side, scaled to about `size` pixels of height."""
    total, height, width, _ = pixels.shape
    picks = np.linspace(0, total - 1, min(count, total)).round().astype(int)
    if height <= size:
        strip = enlarged(pixels[picks], max(1, size // height))
    else:
        small = (max(1, round(width * size / height)), size)
        strip = np.stack(
            [np.asarray(Image.fromarray(f).resize(small, Image.Resampling.LANCZOS)) for f in pixels[picks]]
        )
    bar = np.full((strip.shape[1], 2, 3), 255, np.uint8)
    return Image.fromarray(np.concatenate([image for frame in strip for image in (frame, bar)][:-1], axis=1))


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """`text` on one line, shortened with "..." to at most `width` pixels."""
    text = " ".join(text[: 10 * width].split())  # a letter is wider than a tenth of a pixel
    if font.getlength(text) <= width:
        return text

    def length(letters: int) -> float:
        return font.getlength(text[:letters] + "...")

    letters = bisect.bisect_right(range(1, len(text)), float(width), key=length)
    return text[:letters].rstrip() + "..."


def slug(text: str, length: int = 48) -> str:
    """`text` for a file name: lower-case letters and digits joined by "-", at most `length` characters."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words[:length].rstrip("-") or "video"
