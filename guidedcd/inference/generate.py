"""Sampling to files: videos of a student or a teacher with their metadata; an interrupted call can be continued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from guidedcd import __version__
from guidedcd.config.kinds import Chosen
from guidedcd.config.sampling import SampleConfig
from guidedcd.config.structure import options_of
from guidedcd.data.clips import Prompt
from guidedcd.data.prompts import as_prompts
from guidedcd.files import file_digest
from guidedcd.inference.loading import load_student
from guidedcd.inference.pipeline import StudentPipeline, batch_size, strengths
from guidedcd.inference.video_jobs import VideoSource, check_seeds, enlargement, size_settings, write_videos

if TYPE_CHECKING:
    from guidedcd.models.teachers.videocrafter2 import VideoCrafter2Teacher


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
    check_seeds(config, len(listed))
    student = load_student(
        folder,
        teacher,
        device=device,
        dtype=config.dtype,
        size=config.size,
        fraction=fraction,
    )
    student.accelerate(config.fast)
    source = student_source(config, student)
    return write_videos(source, listed, config, _folder(student) if out is None else Path(out))


def student_source(config: SampleConfig, student: StudentPipeline) -> VideoSource:
    """The student with the options of a call, completed with those of its run.

    Raises:
        GuidedCDError: The videos would be too large, or the student was not trained with that scale.
    """
    run, geometry = student.run, student.teacher.geometry
    enlarge, batch = enlargement(config, geometry), config.batch or batch_size(student.teacher)
    steps = run.evaluate.steps if config.steps is None else config.steps
    omega = run.evaluate.omega if config.omega is None else config.omega
    scale = strengths(student, config.scale)
    settings: dict[str, Any] = {"steps": steps, "omega": omega, "scale": scale, "dtype": config.dtype}
    settings |= size_settings(geometry, enlarge) | {"student": file_digest(student.file)[:16]}
    if student.weights.is_file():  # a published student, whose teacher is a VideoCrafter2Teacher
        base = cast("VideoCrafter2Teacher", student.teacher).path
        assert base is not None  # a published student is loaded on a teacher with weights
        settings["base"] = file_digest(base)[:16]
        settings["fraction"] = {name: energy.fraction for name, energy in run.energies.items()}

    def sample(prompts: Sequence[str], seeds: Sequence[int]) -> tuple[Tensor, list[Mapping[str, Any]]]:
        videos = student(prompts, steps, seeds, omega=omega, scale=scale or None, batch=batch)
        return videos, [{}] * len(prompts)

    return VideoSource(
        sample=sample,
        fps=geometry.fps,
        batch=batch,
        enlarge=enlarge,
        settings=settings,
        origin={"teacher": run.teacher.name, "run": run.name, "guidedcd": __version__},
    )


def _folder(student: StudentPipeline) -> Path:
    """The default folder for the videos."""
    return Path("samples") if student.weights.is_file() else student.folder / "samples"
