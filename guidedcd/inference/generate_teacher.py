"""Sampling to files with a teacher, guided by energies without any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from guidedcd import __version__
from guidedcd.acceleration.apply import accelerated
from guidedcd.config.kinds import Chosen
from guidedcd.config.sampling import GuidedConfig, SampleConfig
from guidedcd.config.sections import EvaluateConfig
from guidedcd.config.structure import options_of, unstructure
from guidedcd.data.clips import Prompt
from guidedcd.data.prompts import as_prompts
from guidedcd.energies.traits import needs_video
from guidedcd.errors import GuidedCDError
from guidedcd.files import digest, file_digest
from guidedcd.inference.loading import load_teacher
from guidedcd.inference.pipeline import batch_size
from guidedcd.inference.solvers import chosen_solver
from guidedcd.inference.teacher_pipeline import GuidedVideos, Guiding, TeacherPipeline
from guidedcd.inference.video_jobs import VideoSource, check_seeds, enlargement, size_settings, write_videos
from guidedcd.plugins.configs import EnergyConfig
from guidedcd.plugins.sources import origin


def generate_teacher(
    teacher: str | Chosen,
    prompts: str | Path | Sequence[str | Prompt],
    *,
    energies: Sequence[Chosen] = (),
    guided: GuidedConfig | None = None,
    evaluate: EvaluateConfig | None = None,
    out: Path | None = None,
    device: str | None = None,
    **options: Any,
) -> list[Path]:
    """Sample videos of prompts with a teacher and write them; finished videos are kept.

    Args:
        teacher: "shapes", or with its weights, such as "videocrafter2:model.ckpt".
        prompts: A text, several, or a file (a Path, or "@FILE").
        energies: The energies that guide, with their options.
        guided: The reference of the energies, the solver, and how gradients enter a step.
        evaluate: Options of an evaluation, whose `teacher_steps` and `omega` are the defaults.
        out: The folder for the videos; by default `samples` in the current one.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps"; by default the best there is.
        **options: The fields of `SampleConfig`, but `scale`, which is an option of each energy.

    Returns:
        The mp4 files, in the order of the prompts, each prompt's videos together. The metadata of each has the
        energies and their shares at every step.

    Raises:
        GuidedCDError: An option is unknown or out of range, an energy lacks its reference or the solver ddim,
            there is no such teacher, or a video of other settings has the name of one of these.
    """
    config = SampleConfig(**options_of(SampleConfig, options, "sampling", mark="--"))
    guided, evaluate = guided or GuidedConfig(), evaluate or EvaluateConfig()
    if config.scale is not None:
        raise GuidedCDError("--scale belongs to a student; a teacher's energies have --energies.NAME.scale.")
    if guided.reference is not None and not energies:
        raise GuidedCDError("--reference is what energies compare with: choose some with --energies.")
    built = build_guided(energies, guided)
    listed = as_prompts(prompts)
    check_seeds(config, len(listed))
    pipeline = load_teacher(teacher, device=device or "auto", dtype=config.dtype, size=config.size)
    # The teacher was loaded for this call alone, so its network may change in place.
    with accelerated(pipeline.teacher, fast=config.fast, precision="no", in_place=True):
        guiding = Guiding.build(pipeline.teacher, energies, guided.reference, guided.reference_prompt, built)
        source = _source(pipeline, guiding, guided, config, evaluate)
        return write_videos(source, listed, config, Path("samples") if out is None else Path(out))


def build_guided(energies: Sequence[Chosen], guided: GuidedConfig) -> list[Any]:
    """Build the energies, before a teacher is loaded: they can guide its solver, and each has its reference.

    Raises:
        GuidedCDError: The solver allows no energies, an energy has no reference, or the file is missing.
    """
    if energies and guided.solver not in ("auto", "ddim"):
        raise GuidedCDError("energies guide the ddim solver only. Use --solver ddim.")
    if guided.reference is not None:
        guided.checked_reference()
    built = [one.build() for one in energies]
    for one, energy in zip(energies, built, strict=True):
        if guided.reference is None and needs_video(energy, cast(EnergyConfig, one.config)):
            raise GuidedCDError(f"energy '{one.name}' compares with a reference video: give --reference clip.mp4.")
    return built


def _source(
    pipeline: TeacherPipeline,
    guiding: Guiding,
    guided: GuidedConfig,
    config: SampleConfig,
    evaluate: EvaluateConfig,
) -> VideoSource:
    """The teacher with the options of a call."""
    energies = guiding.energies
    geometry = pipeline.teacher.geometry
    enlarge, batch = enlargement(config, geometry), config.batch or batch_size(pipeline.teacher)
    steps = evaluate.teacher_steps if config.steps is None else config.steps
    omega = evaluate.omega if config.omega is None else config.omega
    how: dict[str, Any] = {"solver": chosen_solver(pipeline.teacher, guided.solver, bool(energies))}
    if energies:  # without them the rule has no effect
        how |= {"rule": guided.rule, "noise_factor": guided.noise_factor}
    settings: dict[str, Any] = {"steps": steps, "omega": omega, "dtype": config.dtype, **how}
    if guided.cfg != "plain":  # plain guidance is recorded as it was before there was a choice
        settings["guider"] = unstructure(guided.guider)
    settings |= size_settings(geometry, enlarge) | {"teacher": pipeline.teacher.fingerprint()[:16]}
    if energies:
        settings["energies"] = {one.name: {**unstructure(one.config), "source": _source_of(one)} for one in energies}
        settings["reference_prompt"] = guided.reference_prompt
        settings["reference"] = guided.reference and file_digest(guided.checked_reference())[:16]

    def sample(prompts: Sequence[str], seeds: Sequence[int]) -> tuple[Tensor, list[Mapping[str, Any]]]:
        result = pipeline.sample_guided(
            prompts,
            guiding,
            steps=steps,
            seeds=seeds,
            omega=omega,
            guider=guided.guider,
            batch=batch,
            **how,
        )
        return result.videos, [_details(result, row) if energies else {} for row in range(len(prompts))]

    return VideoSource(
        sample=sample,
        fps=geometry.fps,
        batch=batch,
        enlarge=enlarge,
        settings=settings,
        origin={"guidedcd": __version__},
    )


def _source_of(energy: Chosen) -> str:
    """A digest of an energy's version and source: another one makes other videos."""
    return digest(origin(energy.component()))


def _details(result: GuidedVideos, row: int) -> dict[str, Any]:
    """What the energies did while one video was sampled, as JSON values."""
    return {"timesteps": list(result.timesteps), "steps_of_energies": result.by_step(row)}
