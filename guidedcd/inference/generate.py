"""Sampling to files: videos of a trained student with their metadata; an interrupted call can be continued."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

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

if TYPE_CHECKING:
    from guidedcd.models.teachers.videocrafter2 import VideoCrafter2Teacher

COPY_SEED = 1_000_003
"""Distance between the seeds of several videos of one prompt."""
MOST_VIDEOS = 100_000
"""Largest number of videos of one call."""
LARGEST_SIDE = 8192
"""Largest number of pixels of a side of a written video."""


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
    """Sample videos of prompts with a trained student and write them; finished videos are kept.

    Args:
        folder: The folder of a run or a student, or the file of a published student.
        prompts: A text, several, or a file (a Path, or "@FILE").
        out: The folder for the videos: by default `samples` in the run's folder, for a published student in the
            current one.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps"; by default as in the run.
        teacher: The base model of a published student; a run names its own.
        fraction: For a published student, see `guidedcd.inference.published.load_published`.
        **options: The fields of `SampleConfig`. Prompt number i (from 0) has the seed `seed` + i, with which its video
            can be sampled again alone.

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
    sampling = _Sampling.build(config, student)
    settings = sampling.settings(student)
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
            for chunk in _chunks(missing, sampling.batch):
                _write(chunk, student, sampling, settings, gif=config.gif)
                advance(len(chunk))
        first = jobs[:24]
        videos = [media.read_video(job.path)[0] for job in first]
        media.contact_sheet(out / "contact_sheet.png", videos, [job.prompt for job in first])
        console.print(f"sample   {len(jobs)} videos and contact_sheet.png in {out}")
    return [job.path for job in jobs]


def _check_seeds(config: SampleConfig, prompts: int) -> None:
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


@attrs.frozen(kw_only=True)
class _Sampling:
    """The options of one call, completed with those of the run and of the teacher."""

    steps: int
    omega: float
    scale: dict[str, float]
    dtype: str
    batch: int
    """Videos per forward pass."""
    enlarge: int
    """Factor by which pixels are repeated in both directions."""

    @classmethod
    def build(cls, config: SampleConfig, student: StudentPipeline) -> _Sampling:
        """Complete the options.

        Raises:
            GuidedCDError: The videos would be too large, or the student was not trained with that scale.
        """
        run, geometry = student.run, student.teacher.geometry
        enlarge = config.enlarge
        if enlarge is None:
            enlarge = 1 if config.vbench_names else media.viewing_factor(geometry.height, geometry.width)
        if enlarge * max(geometry.height, geometry.width) > LARGEST_SIDE:
            raise GuidedCDError(
                f"--enlarge {enlarge} results in videos of more than {LARGEST_SIDE} pixels a side. Lower it."
            )
        return cls(
            steps=run.evaluate.steps if config.steps is None else config.steps,
            omega=run.evaluate.omega if config.omega is None else config.omega,
            scale=strengths(student, config.scale),
            dtype=config.dtype,
            batch=config.batch or batch_size(student.teacher),
            enlarge=enlarge,
        )

    def settings(self, student: StudentPipeline) -> dict[str, Any]:
        """The metadata of every video of the call: all that a video depends on besides its prompt and seed."""
        geometry = student.teacher.geometry
        settings: dict[str, Any] = {
            "steps": self.steps,
            "omega": self.omega,
            "scale": self.scale,
            "dtype": self.dtype,
            "enlarge": self.enlarge,
            "frames": geometry.frames,
            "height": geometry.height * self.enlarge,
            "width": geometry.width * self.enlarge,
            "fps": geometry.fps,
            "student": file_digest(student.file)[:16],
        }
        if student.weights.is_file():  # a published student, whose teacher is a VideoCrafter2Teacher
            base = cast("VideoCrafter2Teacher", student.teacher).path
            assert base is not None  # a published student is loaded on a teacher with weights
            settings["base"] = file_digest(base)[:16]
            settings["fraction"] = {name: energy.fraction for name, energy in student.run.energies.items()}
        return settings


def _folder(student: StudentPipeline) -> Path:
    """The default folder for the videos."""
    return Path("samples") if student.weights.is_file() else student.folder / "samples"


def _write(
    jobs: Sequence[_Job], student: StudentPipeline, sampling: _Sampling, settings: Mapping[str, Any], *, gif: bool
) -> None:
    """Sample the videos of `jobs` in one batch and write them, with their metadata."""
    origin = {"teacher": student.run.teacher.name, "run": student.run.name, "guidedcd": __version__}
    fps = student.teacher.geometry.fps
    with blame_memory("sampling", f"It needs less with --batch {max(1, sampling.batch // 2)}."):
        videos = student(
            [job.prompt for job in jobs],
            sampling.steps,
            [job.seed for job in jobs],
            omega=sampling.omega,
            scale=sampling.scale or None,
            batch=sampling.batch,
        )
    for job, video in zip(jobs, videos, strict=True):
        if gif:
            media.write_video(job.path.with_suffix(".gif"), video, fps=fps, enlarge=sampling.enlarge)
        metadata = {"prompt": job.prompt, "seed": job.seed, **settings, **origin}
        media.write_video(job.path, video, fps=fps, enlarge=sampling.enlarge, metadata=metadata)


@attrs.frozen
class _Job:
    """One video: its file, prompt and seed."""

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
    """Check that all videos have different names, which the file system allows.

    Raises:
        GuidedCDError: Two videos have the same name, or a name is too long for a file.
    """
    first: dict[str, _Job] = {}
    for job in jobs:
        check_name(media.sidecar(job.path))
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


def _finished(job: _Job, settings: Mapping[str, Any], gif: bool) -> bool:
    """Whether the video exists with these settings.

    Raises:
        GuidedCDError: A video of other settings has its name.
    """
    sidecar = media.sidecar(job.path)
    if not (sidecar.is_file() and job.path.is_file()):
        return False
    metadata = read_json(sidecar, {})
    metadata.setdefault("fraction", metadata.get("window"))  # its name in older files
    for key, value in {"prompt": job.prompt, "seed": job.seed, **settings}.items():
        if metadata.get(key) != value:
            raise GuidedCDError(
                f"{job.path} exists, with {key} {shortened(metadata.get(key))} instead of {shortened(value)}. "
                "Choose another --out, or delete it."
            )
    return not gif or job.path.with_suffix(".gif").is_file()


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
