"""The videos of a benchmark, sampled with a student: one seed for each, in the benchmark's own names and folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guidedcd import __version__
from guidedcd.config.sampling import SampleConfig
from guidedcd.config.structure import options_of
from guidedcd.console import console
from guidedcd.diffusion.randomness import check_seed
from guidedcd.errors import GuidedCDError
from guidedcd.evaluation.suites.contract import Suite, SuiteVideo
from guidedcd.evaluation.suites.places import SuiteFolder
from guidedcd.files import check_writable, write_json
from guidedcd.inference.generate import student_source
from guidedcd.inference.loading import load_student
from guidedcd.inference.video_jobs import VideoJob, write_jobs
from guidedcd.locks import locked


def generate_videos(
    suite: Suite,
    videos: Sequence[SuiteVideo],
    run: Path,
    folder: SuiteFolder,
    *,
    device: str | None,
    shard: tuple[int, int],
    options: Mapping[str, Any],
) -> None:
    """Sample the videos that are missing, of one shard; an interrupted call is continued by the same one.

    Args:
        suite: The benchmark.
        videos: All of its videos.
        run: The folder of a run, or of a student or checkpoint in it.
        folder: Where the videos go.
        device: As in `evaluate`.
        shard: (i, n) samples each n-th video from number i, from 0; the shards of several processes share the folder.
        options: Fields of `SampleConfig`, by default as in the run's evaluation.

    Raises:
        GuidedCDError: An option is out of range, or a video of other settings is there.
    """
    check_writable(folder.root)
    config = SampleConfig(**options_of(SampleConfig, options, "a benchmark", mark="--"), enlarge=1)
    first = suite.config.seed
    check_seed(first + max(video.number for video in videos), "the last video's seed")
    own = videos[shard[0] :: shard[1]]
    jobs = [VideoJob(folder.video(one), one.prompt, first + one.number, record=folder.record(one)) for one in own]
    if not jobs:
        raise GuidedCDError(f"shard {shard[0]} of {shard[1]} has no videos: there are only {len(videos)}.")
    student = load_student(run, device=device, dtype=config.dtype)
    student.accelerate(config.fast)
    source = student_source(config, student)
    name = ".lock" if shard[1] == 1 else f".lock-{shard[0]}-of-{shard[1]}"
    with locked(folder.root, "the benchmark's folder", name):
        write_json(
            folder.root / "videos.json",
            {
                "suite": suite.title,
                "guidedcd": __version__,
                "seed": first,
                "settings": dict(source.settings),
                "videos": [{"file": one.file, "prompt": one.prompt, "seed": first + one.number} for one in videos],
            },
        )
        write_jobs(source, jobs, folder.videos)
    missing = len(folder.missing(videos))
    text = "complete" if not missing else f"{missing:,} of {len(videos):,} are still missing"
    console.print(f"suite    {len(own):,} videos in {folder.videos}; the benchmark is {text}", markup=False)
