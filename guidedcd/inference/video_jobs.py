"""Videos of prompts as files with metadata: which are missing, their batches, and the contact sheet.

An interrupted call is continued by the same one: a video whose metadata has the same settings is finished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from torch import Tensor

from guidedcd.config.sampling import SampleConfig
from guidedcd.console import console, progress
from guidedcd.data import media
from guidedcd.data.clips import Prompt
from guidedcd.data.geometry import Geometry
from guidedcd.devices import blame_memory
from guidedcd.diffusion.randomness import check_seed
from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError, shortened
from guidedcd.files import check_name, check_writable
from guidedcd.locks import locked

COPY_SEED = 1_000_003
"""Distance between the seeds of several videos of one prompt."""
MOST_VIDEOS = 100_000
"""Largest number of videos of one call."""
LARGEST_SIDE = 8192
"""Largest number of pixels of a side of a written video."""


@attrs.frozen(kw_only=True, eq=False)
class VideoSource:
    """A model with the settings of one call."""

    sample: Callable[[Sequence[str], Sequence[int]], tuple[Tensor, Sequence[Mapping[str, Any]]]]
    """From prompts (B) and seeds (B) to videos (B, F, 3, H, W) in [0, 1], and further metadata of each (B)."""
    fps: float
    batch: int
    """Videos per call of `sample`."""
    enlarge: int
    """Factor by which pixels are repeated in both directions."""
    settings: Mapping[str, Any]
    """Metadata of every video: all that it depends on besides its prompt and seed, as JSON values."""
    origin: Mapping[str, Any]
    """Further metadata of every video."""


def check_seeds(config: SampleConfig, prompts: int) -> None:
    """Check the last seed and the number of videos.

    Raises:
        GuidedCDError: One of them is too large.
    """
    last = config.seed + prompts - 1 + COPY_SEED * (config.per_prompt - 1)
    if last != config.seed:
        check_seed(last, "with --seed and --per-prompt, the last video's seed")
    if prompts * config.per_prompt > MOST_VIDEOS:
        raise GuidedCDError(
            f"{prompts:,} prompts with --per-prompt {shortened(config.per_prompt, 20)} are more than {MOST_VIDEOS:,} "
            "videos. Make them in several calls."
        )


def enlargement(config: SampleConfig, geometry: Geometry) -> int:
    """The factor by which pixels are repeated.

    Raises:
        GuidedCDError: The videos would be too large.
    """
    enlarge = config.enlarge
    if enlarge is None:
        enlarge = 1 if config.vbench_names else media.viewing_factor(geometry.height, geometry.width)
    if enlarge * max(geometry.height, geometry.width) > LARGEST_SIDE:
        raise GuidedCDError(
            f"--enlarge {enlarge} results in videos of more than {LARGEST_SIDE} pixels a side. Lower it."
        )
    return enlarge


def size_settings(geometry: Geometry, enlarge: int) -> dict[str, Any]:
    """The size of written videos, for `VideoSource.settings`."""
    return {
        "enlarge": enlarge,
        "frames": geometry.frames,
        "height": geometry.height * enlarge,
        "width": geometry.width * enlarge,
        "fps": geometry.fps,
    }


def write_videos(source: VideoSource, prompts: Sequence[Prompt], config: SampleConfig, out: Path) -> list[Path]:
    """Sample and write the videos that are missing in `out`, and a contact sheet.

    Returns:
        The mp4 files, in the order of the prompts, each prompt's videos together.

    Raises:
        GuidedCDError: The folder cannot be written, or a video of other settings has the name of one of these.
    """
    check_writable(out)
    jobs = [
        _job(out, number, copy, prompt.text, config)
        for number, prompt in enumerate(prompts)
        for copy in range(config.per_prompt)
    ]
    _check_distinct(jobs)
    with locked(out, "the folder"):
        write_jobs(source, jobs, out, gif=config.gif)
        first = jobs[:24]
        videos = [media.read_video(job.path)[0] for job in first]
        media.contact_sheet(out / "contact_sheet.png", videos, [job.prompt for job in first])
        console.print(f"sample   {len(jobs)} videos and contact_sheet.png in {out}")
    return [job.path for job in jobs]


def write_jobs(source: VideoSource, jobs: Sequence[VideoJob], out: Path, *, gif: bool = False) -> None:
    """Sample and write those of some videos that are missing.

    Args:
        source: The model.
        jobs: The videos.
        out: Their folder, for messages.
        gif: Also write a gif of each.

    Raises:
        GuidedCDError: A video of other settings has the name of one of these.
    """
    missing = [job for job in jobs if not _finished(job, source.settings, gif)]
    if len(missing) < len(jobs):
        console.print(f"sample   {len(jobs) - len(missing)} of {len(jobs)} videos are finished already in {out}")
    with progress("sample", len(jobs), start=len(jobs) - len(missing), unit="videos") as advance:
        for chunk in _chunks(missing, source.batch):
            _write(chunk, source, gif=gif)
            advance(len(chunk))


def _write(jobs: Sequence[VideoJob], source: VideoSource, *, gif: bool) -> None:
    """Sample the videos of `jobs` in one batch and write them, with their metadata."""
    with blame_memory("sampling", f"It needs less with --batch {max(1, source.batch // 2)}."):
        videos, details = source.sample([job.prompt for job in jobs], [job.seed for job in jobs])
    for job, video, detail in zip(jobs, videos, details, strict=True):
        if gif:
            media.write_video(job.path.with_suffix(".gif"), video, fps=source.fps, enlarge=source.enlarge)
        metadata = {"prompt": job.prompt, "seed": job.seed, **source.settings, **source.origin, **detail}
        media.write_video(job.path, video, fps=source.fps, enlarge=source.enlarge, metadata=metadata, record=job.record)


@attrs.frozen
class VideoJob:
    """One video: its file, prompt and seed, and the file of its metadata, by default beside it."""

    path: Path
    prompt: str
    seed: int
    record: Path = attrs.field(default=attrs.Factory(lambda job: media.sidecar(job.path), takes_self=True))


def _job(out: Path, number: int, copy: int, prompt: str, config: SampleConfig) -> VideoJob:
    if config.vbench_names:
        name = f"{prompt.replace('/', ' ')}-{copy}.mp4"
    else:
        name = f"{number:04d}-{media.slug(prompt)}" + (f"-{copy}" if copy else "") + ".mp4"
    return VideoJob(out / name, prompt, config.seed + number + COPY_SEED * copy)


def _check_distinct(jobs: Sequence[VideoJob]) -> None:
    """Check that all videos have different names, which the file system allows.

    Raises:
        GuidedCDError: Two videos have the same name, or a name is too long for a file.
    """
    first: dict[str, VideoJob] = {}
    for job in jobs:
        check_name(job.record)
        other = first.setdefault(job.path.name.casefold(), job)  # some file systems ignore case
        if other is not job:
            prompts = (
                f"the prompt {shortened(job.prompt)!r} occurs twice"
                if other.prompt == job.prompt
                else f"the prompts {shortened(other.prompt)!r} and {shortened(job.prompt)!r} have the same file name"
            )
            raise GuidedCDError(
                f"--vbench-names names a video by its prompt, and {prompts}. Leave one out; --per-prompt samples "
                "several videos of each prompt."
            )


def _finished(job: VideoJob, settings: Mapping[str, Any], gif: bool) -> bool:
    """Whether the video exists with these settings.

    Raises:
        GuidedCDError: A video of other settings has its name.
    """
    if not (job.record.is_file() and job.path.is_file()):
        return False
    metadata = read_json(job.record, {})
    metadata.setdefault("fraction", metadata.get("window"))  # its name in older files
    # Settings without energies have no such key, but a guided video is another one.
    for key, value in {"prompt": job.prompt, "seed": job.seed, "energies": None, **settings}.items():
        if metadata.get(key) != value:
            raise GuidedCDError(
                f"{job.path} exists, with {key} {shortened(metadata.get(key))} instead of {shortened(value)}. "
                "Choose another --out, or delete it."
            )
    return not gif or job.path.with_suffix(".gif").is_file()


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
