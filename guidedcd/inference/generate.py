"""Sampling to files: a trained student's videos of prompts, with their metadata, resumable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from guidedcd.config.kinds import Chosen
from guidedcd.config.sampling import SampleConfig
from guidedcd.config.structure import options_of
from guidedcd.console import console, progress
from guidedcd.data import media
from guidedcd.data.clips import Prompt
from guidedcd.data.prompts import as_prompts
from guidedcd.devices import blame_memory
from guidedcd.diffusion.randomness import check_seed
from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError, shortened
from guidedcd.files import check_name, check_writable, file_digest
from guidedcd.inference.loading import load_student
from guidedcd.inference.pipeline import StudentPipeline, batch_size, strengths
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
    device: str | None = None,
    teacher: Chosen | None = None,
    fraction: float | None = None,
    **options: Any,
) -> list[Path]:
    """Make videos of prompts with a trained student; finished videos are not made again.

    Args:
        folder: A run's or a student's folder, or the file of a student that others published.
        prompts: A text, several, or a file (a Path, or "@FILE").
        out: Where the videos go; `samples` in the run's folder by default, for a published student in this one.
        device: Where tensors live, by default as in the run.
        teacher: The model that a published student was distilled from; a run names its own.
        fraction: Of a published student, see `guidedcd.inference.published.load_published`.
        **options: The fields of `SampleConfig`. Prompt number i (from 0) starts from seed + i, so that one video can be
            made again alone.

    Returns:
        The mp4 files, in the order of the prompts, each prompt's videos together.

    Raises:
        GuidedCDError: An option is unknown or out of range, there is no such student, or a video of other settings has
            the name of one of these.
    """
    config = SampleConfig(**options_of(SampleConfig, options, "sampling", mark="--"))
    listed = as_prompts(prompts)
    _check_seeds(config, len(listed))
    sizes = {name: getattr(config, name) for name in ("frames", "height", "width")}
    student = load_student(
        folder,
        teacher,
        device=device,
        dtype=config.dtype,
        size={name: size for name, size in sizes.items() if size is not None},
        fraction=fraction,
    )
    student.accelerate(config.fast)
    chosen = _completed(config, student)
    settings = _settings(chosen, student)
    out = _folder(student) if out is None else Path(out)
    check_writable(out)
    jobs = [
        _job(out, number, copy, prompt.text, config)
        for number, prompt in enumerate(listed)
        for copy in range(config.per_prompt)
    ]
    _check_distinct(jobs)
    with locked(out, "the folder"):
        missing = [job for job in jobs if not _finished(job, settings, config.gif)]
        if len(missing) < len(jobs):
            console.print(f"sample   {len(jobs) - len(missing)} of {len(jobs)} videos are finished already in {out}")
        with progress("sample", len(jobs), start=len(jobs) - len(missing), unit="videos") as advance:
            for chunk in _chunks(missing, chosen.batch):
                _write(chunk, student, chosen, settings)
                advance(len(chunk))
        shown = jobs[:24]
        sheet = [media.read_video(job.path)[0] for job in shown]
        media.contact_sheet(out / "contact_sheet.png", sheet, [job.prompt for job in shown])
        console.print(f"sample   {len(jobs)} videos and contact_sheet.png in {out}")
    return [job.path for job in jobs]


def _check_seeds(config: SampleConfig, prompts: int) -> None:
    """Refuse seeds beyond the largest, and more videos than a call makes.

    Raises:
        GuidedCDError: One of them.
    """
    last = config.seed + prompts - 1 + COPY_SEED * (config.per_prompt - 1)
    if last != config.seed:
        check_seed(last, "with --seed and --per-prompt, the last video's seed")
    if prompts * config.per_prompt > MOST_VIDEOS:
        raise GuidedCDError(
            f"{prompts:,} prompts with --per-prompt {shortened(config.per_prompt, 20)} are more than {MOST_VIDEOS:,} "
            "videos. Make them in several calls."
        )


@attrs.frozen(kw_only=True)
class _Completed:
    """Options of a sampling, with those of the run and of the teacher where they were left out."""

    steps: int
    omega: float
    scale: dict[str, float]
    batch: int
    enlarge: int
    dtype: str
    gif: bool


def _completed(config: SampleConfig, student: StudentPipeline) -> _Completed:
    """The options, with those of the run and of the teacher where they are None.

    Raises:
        GuidedCDError: The videos would be too large, or the student was not trained with that scale.
    """
    run, geometry = student.run, student.teacher.geometry
    enlarge = config.enlarge
    if enlarge is None:
        enlarge = 1 if config.vbench_names else media.viewing_factor(geometry.height, geometry.width)
    if enlarge * max(geometry.height, geometry.width) > LARGEST_SIDE:
        raise GuidedCDError(f"--enlarge {enlarge} makes videos of more than {LARGEST_SIDE} pixels a side. Lower it.")
    return _Completed(
        steps=run.evaluate.steps if config.steps is None else config.steps,
        omega=run.evaluate.omega if config.omega is None else config.omega,
        scale=strengths(student, config.scale),
        batch=config.batch or batch_size(student.teacher),
        enlarge=enlarge,
        dtype=config.dtype,
        gif=config.gif,
    )


def _settings(config: _Completed, student: StudentPipeline) -> dict[str, Any]:
    """What a finished video depends on besides its prompt and seed, as its metadata has it."""
    geometry = student.teacher.geometry
    settings: dict[str, Any] = {
        "steps": config.steps,
        "omega": config.omega,
        "scale": config.scale,
        "dtype": config.dtype,
        "enlarge": config.enlarge,
        "frames": geometry.frames,
        "height": geometry.height * config.enlarge,
        "width": geometry.width * config.enlarge,
        "fps": geometry.fps,
        "student": file_digest(student.file)[:16],
    }
    if student.weights.is_file():
        teacher: Any = student.teacher  # of a published student: it has the path of its checkpoint
        settings["base"] = file_digest(teacher.path)[:16]
        settings["fraction"] = {name: energy.fraction for name, energy in student.run.energies.items()}
    return settings


def _folder(student: StudentPipeline) -> Path:
    """Where videos go by default."""
    return Path("samples") if student.weights.is_file() else student.folder / "samples"


def _write(jobs: Sequence[_Job], student: StudentPipeline, config: _Completed, settings: Mapping[str, Any]) -> None:
    """Make the videos of `jobs` in one batch and write them, with their metadata."""
    about = {"teacher": student.run.teacher.name, "run": student.run.name, "guidedcd": __version__}
    fps = student.teacher.geometry.fps
    with blame_memory("sampling", f"It needs less with --batch {max(1, config.batch // 2)}."):
        videos = student(
            [job.prompt for job in jobs],
            config.steps,
            [job.seed for job in jobs],
            omega=config.omega,
            scale=config.scale or None,
            batch=config.batch,
        )
    for job, video in zip(jobs, videos, strict=True):
        if config.gif:
            media.write_video(job.path.with_suffix(".gif"), video, fps=fps, enlarge=config.enlarge)
        metadata = {"prompt": job.prompt, "seed": job.seed, **settings, **about}
        media.write_video(job.path, video, fps=fps, enlarge=config.enlarge, metadata=metadata)


@attrs.frozen
class _Job:
    """One video to make."""

    path: Path
    prompt: str
    seed: int


def _job(out: Path, number: int, copy: int, prompt: str, config: SampleConfig) -> _Job:
    if config.vbench_names:
        name = f"{prompt.replace('/', ' ')}-{copy}.mp4"
    else:
        name = f"{number:04d}-{media.slug(prompt)}" + (f"-{copy}" if copy else "") + ".mp4"
    return _Job(out / name, prompt, config.seed + number + COPY_SEED * copy)


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
    found.setdefault("fraction", found.get("window"))  # its name in older files
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
