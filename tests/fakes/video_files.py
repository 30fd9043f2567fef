"""Small video files, sound and broken, in the layouts of the published data sets."""

from __future__ import annotations

import csv
import io
import json
import struct
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

QUARTER_TURN = (0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
"""A display matrix: turn the picture clockwise, as phones held upright write it."""


def picture(number: int, height: int = 24, width: int = 32) -> np.ndarray:
    """A frame (h, w, 3) uint8 whose grey level is its number: 8 per frame."""
    return np.full((height, width, 3), min(8 * number + 4, 255), np.uint8)


def video(
    frames: int | Sequence[np.ndarray] = 12,
    *,
    fps: int = 8,
    times: Sequence[int] | None = None,
    kind: str = "mp4",
    codec: str = "libx264",
    matrix: Sequence[int] | None = None,
    aspect: Fraction | None = None,
) -> bytes:
    """A video file.

    Args:
        frames: How many of `picture`, or the pictures.
        fps: Frames per second, where `times` does not say.
        times: When each frame is shown, in milliseconds.
        kind: Container.
        codec: Encoder.
        matrix: Display matrix, nine fixed-point numbers.
        aspect: Width of a pixel over its height.
    """
    images = [picture(i) for i in range(frames)] if isinstance(frames, int) else frames
    height, width, _ = images[0].shape
    options = {"movflags": "+faststart"} if kind == "mp4" else {}
    with tempfile.TemporaryDirectory() as place:  # "faststart" reads the file again, so it must have a name
        path = Path(place) / "video"
        with av.open(str(path), "w", format=kind, options=options) as container:
            stream = container.add_stream(codec, rate=fps)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.time_base = Fraction(1, 1000) if times else Fraction(1, fps)
            if codec == "libx264":
                stream.options = {"crf": "10", "preset": "ultrafast", "threads": "1", "g": "4"}
            if aspect:
                stream.codec_context.sample_aspect_ratio = aspect
            for number, image in enumerate(images):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = times[number] if times else number, stream.codec_context.time_base
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        content = bytearray(path.read_bytes())
    if matrix:
        at = content.find(b"tkhd") + 44
        content[at : at + 36] = struct.pack(">9i", *matrix)
    return bytes(content)


def sound_only() -> bytes:
    """An mp4 file without a video stream."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.rate = 16000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    return target.getvalue()


def noisy(frames: int = 12) -> bytes:
    """A video large enough to be cut in the middle of its pictures."""
    random = np.random.default_rng(0)
    return video([random.integers(0, 255, (48, 64, 3), np.uint8) for _ in range(frames)])


BROKEN: dict[str, tuple[Callable[[], bytes | None], str]] = {
    "cut": (lambda: noisy()[: len(noisy()) // 2], "damaged|cut off"),
    "headless": (lambda: noisy()[:200], "damaged or no video|contains no video stream"),
    "empty": (lambda: b"", "the file is empty"),
    "no-video": (lambda: b"I am a text. " * 50, "damaged or no video"),
    "sound": (sound_only, "contains no video stream"),
    "short": (lambda: video(1), "too short"),
    "missing": (lambda: None, "the file is missing"),
}
"""By kind of damage, the content of the file (None: there is none), and what the reason says."""


def write(path: Path, content: bytes | None) -> None:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is not None:
        path.write_bytes(content)


def contents(count: int, broken: Sequence[str], every: int) -> list[bytes | None]:
    """`count` videos of which every `every`-th, from the second on, is broken in the next of the ways `broken`."""
    sound, ways = video(), iter(broken)
    return [BROKEN[next(ways)][0]() if i % every == 1 else sound for i in range(count)]


def webvid(root: Path, files: Sequence[bytes | None], rows: Sequence[str] = ()) -> Path:
    """WebVid: a CSV and videos/PAGE_DIR/VIDEOID.mp4; `rows` are more lines of the CSV."""
    with open(_made(root) / "results_2M_train.csv", "w", newline="", errors="surrogateescape") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["videoid", "contentUrl", "duration", "page_dir", "name"])
        for number, content in enumerate(files):
            page = f"{number // 10:06d}_{number // 10 + 50:06d}"
            writer.writerow(
                [1000 + number, "https://example.org/x.mp4", "PT00H00M02S", page, f'A "red" ball, {number}']
            )
            write(root / "videos" / page / f"{1000 + number}.mp4", content)
        handle.writelines(row + "\n" for row in rows)
    return root


def vidgen(root: Path, files: Sequence[bytes | None], rows: Sequence[object] = ()) -> Path:
    """VidGen-1M: a JSON list, and the mp4 files of its archives in folders; `rows` are more entries."""
    listed: list[object] = []
    for number, content in enumerate(files):
        name = f"--vid{number}-Scene-{number:04d}"
        listed.append({"vid": name, "caption": f"The video shows ball {number}. " + "It rolls on and on. " * 12})
        write(root / f"VidGen_video_{number % 2}" / f"{name}.mp4", content)
    (_made(root) / "VidGen_1M_video_caption.json").write_text(json.dumps([*listed, *rows]))
    return root


def openvid(root: Path, files: Sequence[bytes | None], rows: Sequence[str] = ()) -> Path:
    """OpenVid-1M: a CSV with scores, and one folder of mp4 files; `rows` are more lines of the CSV."""
    with open(_made(root) / "OpenVid-1M.csv", "w", newline="", errors="surrogateescape") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        names = "video,caption,aesthetic score,motion score,temporal consistency score,camera motion,frame,fps,seconds"
        writer.writerow(names.split(","))
        for number, content in enumerate(files):
            row = [
                f"celeb_{number}_0to12.mp4",
                f"A ball {number} rolls.",
                5.1,
                number / 2,
                0.99,
                "static",
                12,
                8.0,
                1.5,
            ]
            writer.writerow(row)
            write(root / "video" / f"celeb_{number}_0to12.mp4", content)
        handle.writelines(row + "\n" for row in rows)
    return root


def shards(root: Path, files: Sequence[bytes | None], size: int = 4) -> Path:
    """Tar shards of `size` samples; every second one has its caption in a .txt, the others in a .json."""
    for first in range(0, len(files), size):
        with tarfile.open(_made(root) / f"train-{first // size:05d}.tar", "w") as archive:
            for number in range(first, min(first + size, len(files))):
                about = {"caption": f"Tar clip {number}.", "motion score": 2.0, "key": f"{number:09d}"}
                text = about["caption"].encode()
                members = [
                    (".mp4", files[number]),
                    (".txt", text) if number % 2 else (".json", json.dumps(about).encode()),
                ]
                for kind, content in members:
                    if content is not None:
                        add(archive, f"{number:09d}{kind}", content)
    return root


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a member to a tar."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def folder(root: Path, files: Sequence[bytes | None]) -> Path:
    """Videos in two folders, captions beside them in .txt and .json files."""
    for number, content in enumerate(files):
        path = _made(root / ("ab"[number % 2])) / f"clip {number:02d}.mp4"
        write(path, content)
        if number % 3:
            path.with_suffix(".txt").write_text(f" A clip {number}\n")
        else:
            about = {"caption": f"A clip {number}", "short_caption": "clip", "motion": 1.5, "place": "here"}
            path.with_suffix(".json").write_text(json.dumps(about))
    return root


def _made(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    return root
