"""Sampling to files: a trained student's videos of prompts, with their metadata, resumable."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from guidedcd.acceleration.options import check
from guidedcd.config.run import Chosen
from guidedcd.console import console, progress
from guidedcd.data import media
from guidedcd.data.clips import Prompt
from guidedcd.data.prompts import given
from guidedcd.devices import blame_memory
from guidedcd.diffusion.randomness import check_seed
from guidedcd.diffusion.sampler import multistep_timesteps
from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError, shortened
from guidedcd.files import check_name, check_writable, file_digest
from guidedcd.inference.loading import load_student
from guidedcd.inference.pipeline import batch_size, strengths
from guidedcd.locks import locked
from guidedcd.version import __version__

COPY_SEED = 1_000_003
"""Seeds of a prompt's further videos lie this far apart."""
MOST_VIDEOS = 100_000
"""Videos of one call."""
LARGEST_SIDE = 8192
"""Pixels of a written video's longer side."""


def generate(
    folder: Path,
    prompts: str | Path | Sequence[str | Prompt],
    *,
    out: Path | None = None,
    steps: int | None = None,
    omega: float | None = None,
    scale: float | Mapping[str, float] | None = None,
    seed: int = 0,
    per_prompt: int = 1,
    gif: bool = False,
    enlarge: int | None = None,
    vbench_names: bool = False,
    batch: int | None = None,
    device: str | None = None,
    dtype: str = "float32",
    fast: str = "auto",
    teacher: Chosen | None = None,
    size: Mapping[str, int] | None = None,
    window: float | None = None,
) -> list[Path]:
    """Make videos of prompts with a trained student; what is finished already is not made again.

    Args:
        folder: A run's or a student's folder, or the file of a student that others published.
        prompts: A text, several, or a file (a Path, or "@FILE").
        out: Where the videos go; `samples` in the run's folder by default, for a published student in this one.
        steps: Sampling steps, by default as the run's evaluation.
        omega: Guidance strength that the student is told, by default as the run's evaluation.
        scale: Strength of the student's energies, see `strengths`.
        seed: Prompt number i (from 0) starts from seed + i, so that one video can be made again alone.
        per_prompt: Videos of each prompt, each from another seed.
        gif: Also write a gif of each.
        enlarge: Repeat every pixel so often; by default small videos are shown at about 256 pixels.
        vbench_names: Name files "PROMPT-N.mp4" at their true size, the layout that VBench reads.
        batch: Videos per batch.
        device: Where tensors live, by default as the run says.
        dtype: "float32", "bfloat16" or "float16".
        fast: Faster paths through the networks, see `guidedcd.acceleration.options`; videos differ by rounding alone.
        teacher: What a published student was distilled from; a run knows its own.
        size: Other `frames`, `height` or `width` (pixels) than the teacher has.
        window: Of a published student, see `guidedcd.inference.published.load_published`.

    Returns:
        The mp4 files, in the order of the prompts, each prompt's videos together.
    """
    wanted = given(prompts)
    for name, value in {"per-prompt": per_prompt, "enlarge": enlarge, "batch": batch, "steps": steps}.items():
        if value is not None and value < 1:
            raise GuidedCDError(f"--{name} must be at least 1, not {value}.")
    if omega is not None and not 0 <= omega < math.inf:
        raise GuidedCDError(f"--omega must be a number of at least 0, not {omega}.")
    last = seed + len(wanted) - 1 + COPY_SEED * (per_prompt - 1)
    if check_seed(seed) != last:
        check_seed(last, "with --seed and --per-prompt, the last video's seed")
    if len(wanted) * per_prompt > MOST_VIDEOS:
        raise GuidedCDError(
            f"{len(wanted):,} prompts with --per-prompt {shortened(per_prompt, 20)} are more than {MOST_VIDEOS:,} "
            "videos. Make them in several calls."
        )
    if steps is not None:
        multistep_timesteps(steps)  # refuses too many before anything is loaded
    check(fast)
    trained = load_student(folder, teacher, device=device, dtype=dtype, size=size, window=window)
    trained.accelerate(fast)
    teacher, run = trained.teacher, trained.run
    geometry = teacher.geometry
    scales = strengths(trained, scale)
    if enlarge is None:
        enlarge = 1 if vbench_names else media.viewing_factor(geometry.height, geometry.width)
    if enlarge * max(geometry.height, geometry.width) > LARGEST_SIDE:
        raise GuidedCDError(f"--enlarge {enlarge} makes videos of more than {LARGEST_SIDE} pixels a side. Lower it.")
    settings = {
        "steps": run.evaluate.steps if steps is None else steps,
        "omega": run.evaluate.omega if omega is None else omega,
        "scale": scales,
        "dtype": dtype,
        "enlarge": enlarge,
        "frames": geometry.frames,
        "height": geometry.height * enlarge,
        "width": geometry.width * enlarge,
        "fps": geometry.fps,
        "student": file_digest(trained.file)[:16],
    }
    if published := trained.weights.is_file():
        settings["base"] = file_digest(teacher.path)[:16]
        settings["window"] = {name: config.fraction for name, config in run.energies.items()}
    if out is None:
        out = Path("samples") if published else trained.folder / "samples"
    out = Path(out)
    check_writable(out)
    jobs = [
        _job(out, number, copy, prompt.text, seed, vbench_names)
        for number, prompt in enumerate(wanted)
        for copy in range(per_prompt)
    ]
    _check_distinct(jobs)
    with locked(out, "the folder"):
        todo = [job for job in jobs if not _finished(job, settings, gif)]
        if len(todo) < len(jobs):
            console.print(f"sample   {len(jobs) - len(todo)} of {len(jobs)} videos are finished already in {out}")
        size = batch or batch_size(teacher)
        about = {"teacher": run.teacher.name, "run": run.name, "guidedcd": __version__}
        with progress("sample", len(jobs), start=len(jobs) - len(todo), unit="videos") as advance:
            for some in _chunks(todo, size):
                with blame_memory("sampling", f"It needs less with --batch {max(1, size // 2)}."):
                    videos = trained(
                        [job.prompt for job in some],
                        settings["steps"],
                        [job.seed for job in some],
                        omega=settings["omega"],
                        scale=scales or None,
                        batch=size,
                    )
                for job, video in zip(some, videos, strict=True):
                    if gif:
                        media.write_video(job.path.with_suffix(".gif"), video, fps=geometry.fps, enlarge=enlarge)
                    metadata = {"prompt": job.prompt, "seed": job.seed, **settings, **about}
                    media.write_video(job.path, video, fps=geometry.fps, enlarge=enlarge, metadata=metadata)
                advance(len(some))
        shown = jobs[:24]
        sheet = [media.read_video(job.path)[0] for job in shown]
        media.contact_sheet(out / "contact_sheet.png", sheet, [job.prompt for job in shown])
        console.print(f"sample   {len(jobs)} videos and contact_sheet.png in {out}")
    return [job.path for job in jobs]


@attrs.frozen
class _Job:
    """One video to make."""

    path: Path
    prompt: str
    seed: int


def _job(out: Path, number: int, copy: int, prompt: str, seed: int, vbench_names: bool) -> _Job:
    if vbench_names:
        name = f"{prompt.replace('/', ' ')}-{copy}.mp4"
    else:
        name = f"{number:04d}-{media.slug(prompt)}" + (f"-{copy}" if copy else "") + ".mp4"
    return _Job(out / name, prompt, seed + number + COPY_SEED * copy)


def _check_distinct(jobs: Sequence[_Job]) -> None:
    """Refuse names that two videos share, for one would replace the other.

    Raises:
        GuidedCDError: Two videos have one name, or a name is too long for a file.
    """
    first: dict[str, _Job] = {}
    for job in jobs:
        check_name(media.sidecar(job.path))
        other = first.setdefault(job.path.name.casefold(), job)  # some file systems see no difference in case
        if other is not job:
            prompts = (
                f"the prompt {shortened(job.prompt)!r} is there twice"
                if other.prompt == job.prompt
                else f"the prompts {shortened(other.prompt)!r} and {shortened(job.prompt)!r} give the same name"
            )
            raise GuidedCDError(
                f"--vbench-names names a video by its prompt, and {prompts}. Leave one out; --per-prompt makes several "
                "videos of each prompt."
            )


def _finished(job: _Job, settings: Mapping[str, Any], gif: bool) -> bool:
    """Whether the video is there.

    Raises:
        GuidedCDError: A video of other settings has its name.
    """
    about = media.sidecar(job.path)
    if not (about.is_file() and job.path.is_file()):
        return False
    found = read_json(about, {})
    for key, value in {"prompt": job.prompt, "seed": job.seed, **settings}.items():
        if found.get(key) != value:
            raise GuidedCDError(
                f"{job.path} is there with another {key} ({shortened(found.get(key))} there, {shortened(value)} here). "
                "Choose another --out, or delete it."
            )
    return not gif or job.path.with_suffix(".gif").is_file()


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
