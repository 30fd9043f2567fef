"""A trained student with all that its samples depend on, and batches of videos of student and teacher.

All noise of a video follows from its seed. A video does not depend on its batch, and student and teacher start a video
of the same seed from the same noise.
Legend: B videos of a batch, C latent channels, F frames, H/W pixels, h/w latent size, E energies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from guidedcd.acceleration.precision import cast
from guidedcd.config.kinds import Chosen
from guidedcd.config.resolve import read_run
from guidedcd.config.run import Run
from guidedcd.config.structure import Value, structure
from guidedcd.devices import blame_memory, dtype_of
from guidedcd.devices import device as find_device
from guidedcd.diffusion.guidance import lambda_input
from guidedcd.diffusion.randomness import Stream, noise
from guidedcd.diffusion.sampler import sample
from guidedcd.docstrings import documented
from guidedcd.errors import GuidedCDError, shortened
from guidedcd.inference.solvers import teacher_sample
from guidedcd.inference.student_folders import locate, results_of
from guidedcd.models.student import Student
from guidedcd.models.teachers.contract import build_teacher
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.plugins.configs import EnergyConfig


@documented
@attrs.frozen(kw_only=True, eq=False)
class StudentPipeline:
    """A student with all that its samples depend on."""

    run: Run
    """The run that trained the student."""
    teacher: Teacher
    """Its teacher, which embeds prompts and decodes latents."""
    student: Student
    """The network with its guidance inputs."""
    folder: Path
    """The run's folder, or that of a published student's file."""
    weights: Path
    """The folder of the student's weights, or a published student's file."""

    @property
    def file(self) -> Path:
        """The file of the student's weights."""
        return self.weights / "model.safetensors" if self.weights.is_dir() else self.weights

    @property
    def origin(self) -> Path:
        """The run's folder or the file of a published student, for messages."""
        return self.folder if self.weights.is_dir() else self.weights

    @property
    def results(self) -> Path:
        """The folder of its evaluation, see `results_of`."""
        return results_of(self.folder, self.weights)

    @classmethod
    def from_run(
        cls,
        path: str | Path,
        *,
        device: str | None = None,
        dtype: str = "float32",
        size: Mapping[str, int] | None = None,
    ) -> StudentPipeline:
        """The student of a run folder, or of a student or checkpoint folder inside one, ready to sample.

        Args:
            path: The folder.
            device: "auto", "cpu", "cuda", "cuda:N" or "mps"; by default as in the run.
            dtype: "float32", "bfloat16" or "float16".
            size: Other `frames`, `height` or `width` (pixels) than the student was trained with.

        Raises:
            GuidedCDError: There is no student, its run cannot be found, or the size is not possible.
        """
        folder, weights = locate(Path(path))
        weights_dtype = dtype_of(dtype)
        run = read_run(folder / "run.json", for_sampling=True)
        where = find_device(run.device if device is None else device)
        with blame_memory("the teacher"):
            teacher = build_teacher(with_options(run.teacher, size or {}), where)
            # Adapters identify their teacher by its fingerprint, which depends on the size of its videos.
            geometry = teacher.geometry
            trained_with = {name: getattr(run.teacher.config, name) for name in size or {}}
            if None in trained_with.values():  # the model's usual size
                usual = run.teacher.outline().geometry
                trained_with = {name: getattr(usual, name) for name in trained_with}
            teacher.geometry = attrs.evolve(geometry, **trained_with)
            student = Student.load(weights, teacher).to(where)
            teacher.geometry = geometry
            if stray := sorted(set(student.energies) - set(run.energies)):
                raise GuidedCDError(
                    f"{weights / 'student.json'} names the energy '{shortened(stray[0])}', which {folder / 'run.json'} "
                    "does not have: the two files belong to different runs."
                )
            if dtype != "float32":
                teacher.to(where, weights_dtype)
                cast(student.network, weights_dtype)
        return cls(run=run, teacher=teacher, student=student, folder=folder, weights=weights)

    @torch.no_grad()
    def __call__(
        self,
        prompts: str | Sequence[str],
        steps: int = 4,
        seeds: int | Sequence[int] | None = None,
        *,
        omega: float | None = None,
        scale: float | Mapping[str, float] | None = None,
        batch: int | None = None,
    ) -> Tensor:
        """Sample one video per prompt, with one network call per step.

        Args:
            prompts: One text, or several (B).
            steps: Sampling steps.
            seeds: One seed per prompt (B); by default 0, 1, 2, ... All noise of a video follows from its seed.
            omega: Guidance strength, which is diffusers' guidance_scale - 1; by default that of the run's evaluation.
            scale: Strength of the student's energies, one number or numbers by name; by default as trained.
            batch: Videos per forward pass; by default a number that fits into the memory of common devices.

        Returns:
            Videos (B, F, 3, H, W), float32 in [0, 1].

        Raises:
            GuidedCDError: There are not as many seeds as prompts, the number of steps is not possible, or the student
                has no such energy or strength.
        """
        prompts, seeds = prompts_and_seeds(prompts, seeds)
        scales = strengths(self, scale)
        omega = self.run.evaluate.omega if omega is None else omega
        batch = batch or batch_size(self.teacher)
        videos = [
            self.teacher.decode(
                self._latents(prompts[start : start + batch], seeds[start : start + batch], steps, omega, scales)
            ).float()
            for start in range(0, len(prompts), batch)
        ]
        return videos[0] if len(videos) == 1 else torch.cat(videos)

    @torch.no_grad()
    def latents(self, prompts: Sequence[str], seeds: Sequence[int], steps: int = 4) -> Tensor:
        """Clean latents (B, C, F, h, w) of the videos of `__call__`, in one batch."""
        return self._latents(prompts, seeds, steps, self.run.evaluate.omega, strengths(self))

    def _latents(
        self, prompts: Sequence[str], seeds: Sequence[int], steps: int, omega: float, scales: Mapping[str, float]
    ) -> Tensor:
        """Clean latents (B, C, F, h, w) of one forward pass per step; `scales` as `strengths` returns."""
        teacher = self.teacher
        configs = [self.run.energies[name] for name in self.student.energies]
        lambdas = lambda_inputs(self, scales)
        return sample(
            self.student,
            teacher,
            teacher.embed(prompts),
            initial(teacher, seeds),
            steps,
            omega,
            torch.stack(lambdas) if lambdas else None,
            [config.fraction for config in configs],
            noises=[initial(teacher, seeds, 1 + step) for step in range(steps)],
        )

    def accelerate(self, fast: str = "auto") -> None:
        """Switch its networks to faster paths, see `guidedcd.acceleration.options`.

        Raises:
            GuidedCDError: There is no such choice.
        """
        from guidedcd.acceleration.apply import accelerate

        accelerate(self.student, self.teacher, fast)


def with_options(teacher: Chosen, options: Mapping[str, Any]) -> Chosen:
    """The teacher with other options, such as the `frames`, `height`, `width` and `fps` of its videos.

    Raises:
        GuidedCDError: This teacher has no such option, or the value is out of range.
    """
    config = teacher.config
    values = {field.name: Value(getattr(config, field.name), "run.json") for field in attrs.fields(type(config))}
    values |= {name: Value(value, f"--{name}") for name, value in options.items()}
    return Chosen(teacher.name, structure(type(config), values, f"teacher '{teacher.name}'"))


def strengths(trained: StudentPipeline, scale: float | Mapping[str, float] | None = None) -> dict[str, float]:
    """The strength of each of the student's energies, by name.

    Args:
        trained: The student.
        scale: One number for the only energy, or numbers by name; None is as in training. The number is
            the `scale` of the energy, or its `relative` where the run has that.

    Raises:
        GuidedCDError: The student has no such energy, or was not trained with that scale.
    """
    energies = trained.run.energies
    names = trained.student.energies
    scales: Mapping[str, float] = {}
    if scale is not None:
        if not names:
            raise GuidedCDError(f"{trained.origin}: this student was trained without energies, so it has no scale.")
        if not isinstance(scale, Mapping) and len(names) > 1:
            options = " ".join(f"{name}=..." for name in names)
            raise GuidedCDError(f"{trained.origin}: this student has {len(names)} energies; give --scale {options}")
        scales = scale if isinstance(scale, Mapping) else {names[0]: scale}
        if unknown := sorted(set(scales) - set(names)):
            raise GuidedCDError(
                f"{trained.origin}: no energy '{unknown[0]}' in this student. It has {', '.join(names)}."
            )
    return {name: _strength(name, energies[name], scales.get(name), trained.origin) for name in names}


def lambda_inputs(trained: StudentPipeline, scales: Mapping[str, float]) -> list[Tensor]:
    """What the student receives for each of its energies, whose strengths are `scales`."""
    configs = trained.run.energies
    return [
        lambda_input(torch.tensor(scales[name]), relative=configs[name].is_relative)
        for name in trained.student.energies
    ]


def _strength(name: str, config: EnergyConfig, scale: float | None, origin: Path) -> float:
    trained = config.strength
    if config.scale_range is None:
        if scale not in (None, 0, trained):
            raise GuidedCDError(
                f"{origin}: this student was trained with {name} at {trained:g} and without it (0), not at {scale:g}. "
                f"A student trained with --energies.{name}.scale-range LOW,HIGH has a slider."
            )
        return trained if scale is None else float(scale)
    low, high = config.scale_range
    if scale is not None and scale != 0 and not low <= scale <= high:
        raise GuidedCDError(
            f"{origin}: this student was trained with {name} from {low:g} to {high:g} (or 0), not at {scale:g}."
        )
    return min(max(trained, low), high) if scale is None else float(scale)


def batch_size(teacher: Teacher) -> int:
    """A number of videos per batch that fits into the memory of a laptop, or of a small GPU."""
    largest = 2**16 if teacher.device.type == "cpu" else 2**19
    channels, frames, height, width = teacher.geometry.latent_shape
    return max(1, min(128, largest // (channels * frames * height * width)))


def solvers(prediction: str) -> tuple[str, ...]:
    """The solvers that an evaluation tries for a teacher with this kind of prediction."""
    return ("ddim",) if prediction == "flow" else ("ddim", "dpm++")


def prompts_and_seeds(prompts: str | Sequence[str], seeds: int | Sequence[int] | None) -> tuple[list[str], list[int]]:
    """The texts and the seeds of B videos; without seeds they are 0, 1, 2, ...

    Raises:
        GuidedCDError: There are not as many seeds as prompts, or no prompt.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    numbers = list(range(len(texts)) if seeds is None else [seeds] if isinstance(seeds, int) else seeds)
    if len(numbers) != len(texts) or not texts:
        raise GuidedCDError(
            f"{len(texts)} prompts, but {len(numbers)} seeds: give one seed per prompt, and at least one prompt."
        )
    return texts, numbers


def initial(teacher: Teacher, seeds: Sequence[int], draw: int = 0) -> Tensor:
    """Noise (B, C, F, h, w) of videos by their seeds; draw 0 is the initial noise, draw i that of step i."""
    shape = teacher.geometry.latent_shape
    return torch.stack([noise(seed, draw, shape, Stream.SAMPLING) for seed in seeds]).to(teacher.device)


def initial_noise(
    teacher: Teacher, seeds: Sequence[int], latents: Tensor | None = None
) -> Callable[[int, int], Tensor]:
    """A function that returns the initial noise of the videos from one row to before another.

    Args:
        teacher: The model.
        seeds: One per video (B), from which the noise follows.
        latents: Noise (B, C, F, h, w) to take instead.

    Raises:
        GuidedCDError: The latents have another shape.
    """
    if latents is None:
        return lambda start, stop: initial(teacher, seeds[start:stop])
    expected = (len(seeds), *teacher.geometry.latent_shape)
    if tuple(latents.shape) != expected:
        raise GuidedCDError(f"the latents must be {expected}, not {tuple(latents.shape)}.")
    return lambda start, stop: latents[start:stop].to(teacher.device)


@torch.no_grad()
def teacher_videos(
    teacher: Teacher, texts: Sequence[str], seeds: Sequence[int], *, steps: int, omega: float, solver: str = "ddim"
) -> Tensor:
    """One batch of the teacher's videos (B, F, 3, H, W) in [0, 1], from the same initial noise as the student's."""
    z = teacher_sample(
        teacher, teacher.embed(texts), teacher.null(len(texts)), initial(teacher, seeds), steps, omega, solver
    )
    return teacher.decode(z).float()
