"""A teacher that samples videos of prompts, optionally guided by energies.

Legend: B videos, S steps, F frames, H/W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Union, cast

import attrs
import torch
from torch import Tensor

from guidedcd.config.from_python import components
from guidedcd.config.kinds import Chosen
from guidedcd.data.framing import read_framed
from guidedcd.devices import blame_memory
from guidedcd.diffusion.guidance import Rule
from guidedcd.diffusion.guiders import PLAIN, Guider
from guidedcd.energies.traits import check_traits, needs_video
from guidedcd.errors import GuidedCDError
from guidedcd.inference.guides import Guide
from guidedcd.inference.pipeline import batch_size, initial, initial_noise, prompts_and_seeds
from guidedcd.inference.solvers import SamplingStep, chosen_solver, teacher_sample, teacher_steps
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.plugins.configs import EnergyConfig

REFERENCE_DRAW = 2**20
"""Number of the draw for single-step references, larger than that of any sampling step."""

Energies = Union[str, Sequence[Any], Mapping[str, Any], "Guiding", None]
"""Energies as `Run.from_profile` takes them, chosen components, or energies that are built with their reference."""


@attrs.frozen(kw_only=True, eq=False)
class GuidedVideos:
    """Videos of a guided teacher, and what its energies did at every step."""

    videos: Tensor
    """(B, F, 3, H, W), float32 in [0, 1], on the CPU if there are several batches."""
    timesteps: Sequence[int]
    """The training timestep at which each step begins (S), descending."""
    energies: Mapping[str, Tensor]
    """By name, the energy before each step (S, B); NaN where it was not evaluated."""
    shares: Mapping[str, Tensor]
    """By name, the norm of the guided term relative to that of the prediction (S, B); 0 where it does not act."""

    def by_step(self, row: int) -> dict[str, dict[str, list[float | None]]]:
        """Of one video, each energy and its share at every step, as JSON values; null where it was not evaluated."""
        return {
            name: {"energy": _numbers(values[:, row]), "share": _numbers(self.shares[name][:, row])}
            for name, values in self.energies.items()
        }


class TeacherPipeline:
    """Samples videos with a teacher; `teacher` is the teacher itself."""

    def __init__(self, teacher: Teacher, omega: float = 7.5) -> None:
        """Use a teacher on its device; `omega` is its usual guidance strength, as in `sample_guided`."""
        self.teacher = teacher
        self.omega = omega

    def sample(
        self,
        prompts: str | Sequence[str],
        energies: Energies = None,
        reference: Tensor | str | Path | None = None,
        steps: int = 50,
        seeds: int | Sequence[int] | None = None,
        **options: Any,
    ) -> Tensor:
        """Sample one video per prompt, optionally guided by energies.

        Arguments and errors are those of `sample_guided`, which also returns the energies of every step.

        Returns:
            Videos (B, F, 3, H, W), float32 in [0, 1].
        """
        return self.sample_guided(prompts, energies, reference, steps, seeds, **options).videos

    def sample_guided(
        self,
        prompts: str | Sequence[str],
        energies: Energies = None,
        reference: Tensor | str | Path | None = None,
        steps: int = 50,
        seeds: int | Sequence[int] | None = None,
        *,
        omega: float | None = None,
        reference_prompts: str | Sequence[str] | None = None,
        solver: str = "auto",
        rule: str = "official",
        noise_factor: str = "official",
        guider: Guider | str = PLAIN,
        batch: int | None = None,
        latents: Tensor | None = None,
        watch: bool = False,
        guided: bool = True,
        advance: Callable[[int], None] = lambda _: None,
        advice: str | None = None,
    ) -> GuidedVideos:
        """Sample one video per prompt with energies, and return the energies and their shares at every step.

        Args:
            prompts: One text, or several (B).
            energies: As in `Run.from_profile`: names, {"pta": {"relative": 0.1}}, functions, or functions by name. The
                options of each energy are its strength (`scale` or `relative`), the `fraction` of steps that it guides,
                the noisiest ones, and the kind of its `reference`.
            reference: The video that energies compare with: a file, or pixels (1 or B, F, 3, H, W) in [0, 1]. A file is
                brought to the teacher's size and frame rate. Energies that are `reference_free` need none. Without one,
                energies of the output with the reference `prediction` compare with the sample's own prediction without
                guidance, as in training.
            steps: Points of the solver's grid.
            seeds: One seed per prompt (B); by default 0, 1, 2, ...
            omega: Guidance strength, which is diffusers' guidance_scale - 1; 0 is off. The default is that of the
                evaluations in the profile of this teacher, 7.5 if it has none.
            reference_prompts: Captions of the reference (1 or B); by default the prompt in the file's metadata, else
                `prompts`.
            solver: "ddim", "dpm++", or "own" for the sampler of the model's own pipeline, with its scheduler and times;
                "auto" is "own" for teachers that have one, and otherwise "ddim". Energies need "ddim".
            rule: How the gradient of an energy enters a step, see `guidedcd.diffusion.guidance`.
            noise_factor: "official" or "sqrt-one-minus".
            guider: How the predictions with and without the caption become one: "plain", "apg", "cfg-zero" or a
                `Guider`.
            batch: Videos per forward pass; by default a number that fits into the memory of common devices.
            latents: Initial noise (B, C, F, h, w); by default that of the seeds.
            watch: Evaluate the energies at every step, also where they do not guide.
            guided: False only watches the energies: the videos are those of the teacher without them.
            advance: Called after each step with the number of videos that it advanced.
            advice: What the error of full memory recommends; by default a smaller batch.

        Raises:
            GuidedCDError: An energy has no reference or does not exist, or an argument has the wrong shape or range.
        """
        teacher = self.teacher
        prompts, seeds = prompts_and_seeds(prompts, seeds)
        if not 1 <= steps <= len(teacher.schedule):
            raise GuidedCDError(f"steps must be 1 to {len(teacher.schedule)}, not {steps}.")
        sampler = _GuidedSampler(
            teacher=teacher,
            steps=steps,
            omega=self.omega if omega is None else omega,
            solver=chosen_solver(teacher, solver, bool(getattr(energies, "energies", energies))),
            rule=Rule(rule, noise_factor),
            guider=Guider(guider) if isinstance(guider, str) else guider,
            watch=watch,
            guided=guided,
            advance=advance,
            advice=advice,
        )
        if not isinstance(energies, Guiding):
            energies = Guiding.build(teacher, energies, reference, reference_prompts)
        guiding, noise = energies.of(prompts), initial_noise(teacher, seeds, latents)
        size = batch or batch_size(teacher)
        batches = [
            sampler(prompts[i : i + size], seeds[i : i + size], guiding.rows(i, i + size), noise(i, i + size))
            for i in range(0, len(prompts), size)
        ]
        return batches[0] if len(batches) == 1 else _joined(batches)


@attrs.frozen(kw_only=True, eq=False)
class Guiding:
    """Built energies with their reference, for one call or several."""

    energies: Sequence[Chosen]
    built: Sequence[Any]
    reference: Tensor | None
    """Pixels (1 or B, F, 3, H, W)."""
    captions: Sequence[str]
    """The references' captions (0, 1 or B); without one, the prompts take their place."""
    known: dict[tuple[Any, ...], list[Guide]] | None = attrs.field(default=None, repr=False)
    """Guides by the seeds and captions of their videos, which several calls share; None keeps none."""

    @classmethod
    def build(
        cls,
        teacher: Teacher,
        energies: Energies,
        reference: Tensor | str | Path | None,
        reference_prompts: str | Sequence[str] | None,
        built: Sequence[Any] | None = None,
    ) -> Guiding:
        """Build the energies, unless they are `built`, and read the reference; see `sample_guided`."""
        chosen = _chosen(energies)
        built = [one.build() for one in chosen] if built is None else built
        captions = [reference_prompts] if isinstance(reference_prompts, str) else list(reference_prompts or ())
        video: Tensor | None = None
        if isinstance(reference, str | Path):
            clip, prompt = read_framed(Path(reference).expanduser(), teacher.geometry)
            video, captions = clip[None], captions or ([prompt] if prompt else [])
        elif reference is not None:
            video = reference
        for one, energy in zip(chosen, built, strict=True):
            config = cast(EnergyConfig, one.config)
            check_traits(energy, config, f"energy '{one.name}'")
            if video is None and needs_video(energy, config):
                raise GuidedCDError(
                    f"energy '{one.name}' needs a reference: a video file, or (1 or B, F, 3, H, W) in [0, 1]."
                )
        shape = teacher.geometry.pixel_shape
        if video is not None:
            if video.dim() != 5 or tuple(video.shape[1:]) != shape:
                raise GuidedCDError(
                    f"the reference must be (1 or B, {', '.join(map(str, shape))}), not {tuple(video.shape)}."
                )
            if not (video.min() >= -0.01 and video.max() <= 1.01):
                raise GuidedCDError(
                    f"the reference must have values in [0, 1], not from {video.min():g} to {video.max():g}: divide "
                    "8-bit frames by 255."
                )
        return cls(energies=chosen, built=built, reference=video if chosen else None, captions=captions)

    def of(self, prompts: Sequence[str]) -> Guiding:
        """The same energies with a caption for each of B prompts.

        Raises:
            GuidedCDError: The number of references or captions is neither 1 nor that of the prompts.
        """
        count, captions = len(prompts), list(self.captions)
        if self.reference is not None and len(self.reference) not in (1, count):
            raise GuidedCDError(f"{len(self.reference)} references, but {count} prompts: give one, or one for each.")
        if len(captions) not in (0, 1, count):
            raise GuidedCDError(f"{len(captions)} reference prompts, but {count} prompts: give one, or one for each.")
        return attrs.evolve(self, captions=captions * count if len(captions) == 1 else captions or list(prompts))

    def rows(self, start: int, stop: int) -> Guiding:
        """The same energies with the references of some videos; one reference of all stays one."""
        reference = self.reference
        if reference is not None and len(reference) > 1:
            reference = reference[start:stop]
        return attrs.evolve(self, reference=reference, captions=self.captions[start:stop])

    def guides(self, teacher: Teacher, seeds: Sequence[int]) -> list[Guide]:
        """Each energy with the latents of its references, which are encoded and inverted once where they are kept."""
        if self.known is None:
            return self._guides(teacher, seeds)
        key = (*seeds, *self.captions)
        if key not in self.known:
            self.known[key] = self._guides(teacher, seeds)
        return self.known[key]

    def _guides(self, teacher: Teacher, seeds: Sequence[int]) -> list[Guide]:
        references: dict[str, Any] = {}
        if self.reference is not None:
            with torch.no_grad():
                z0 = teacher.encode(self.reference.to(teacher.device, torch.float32))
            z0 = z0.repeat(len(seeds) // len(z0), 1, 1, 1, 1)  # a reference of all is encoded once
            cond, noise = teacher.embed(self.captions), initial(teacher, seeds, REFERENCE_DRAW)
            references = {"z0": z0, "cond": cond, "noise": noise, "captions": tuple(self.captions)}
        # The components of the kind energy have configs that derive from EnergyConfig.
        return [
            Guide(
                name=one.name,
                energy=energy,
                config=cast(EnergyConfig, one.config),
                plugin=str(one.component().plugin),
                **references,
            )
            for one, energy in zip(self.energies, self.built, strict=True)
        ]


@attrs.frozen(kw_only=True, eq=False)
class _GuidedSampler:
    """The options of a call, which hold for every batch."""

    teacher: Teacher
    steps: int
    omega: float
    solver: str
    rule: Rule
    guider: Guider
    watch: bool
    guided: bool
    advance: Callable[[int], None]
    advice: str | None

    @torch.no_grad()  # gradients of energies switch it on for themselves
    def __call__(self, prompts: Sequence[str], seeds: Sequence[int], guiding: Guiding, latents: Tensor) -> GuidedVideos:
        """One batch of videos, from the noise `latents` (B, C, F, h, w)."""
        teacher, count = self.teacher, len(prompts)
        cond, null = teacher.embed(prompts), teacher.null(count)
        records: list[SamplingStep] = []
        with blame_memory("sampling", self.advice or f"It needs less with --batch {max(1, count // 2)}."):
            guides = guiding.guides(teacher, seeds)
            if self.solver != "ddim":
                arguments = (teacher, cond, null, latents, self.steps, self.omega, self.solver, guides)
                sources = [torch.Generator().manual_seed(seed) for seed in seeds]
                latents = teacher_sample(*arguments, guider=self.guider, generators=sources)
                self.advance(count * self.steps)
            else:
                options: dict[str, Any] = {"watch": self.watch, "guided": self.guided, "guider": self.guider}
                start = (teacher, cond, null, latents, self.steps, self.omega, guides)
                for step in teacher_steps(*start, captions=tuple(prompts), rule=self.rule, **options):
                    latents = step.latents
                    records.append(attrs.evolve(step, latents=latents.new_empty(0)))
                    self.advance(count)
            videos = teacher.decode(latents).float()
        names = [guide.name for guide in guides]
        unknown, nothing = torch.full((count,), float("nan")), torch.zeros(count)
        return GuidedVideos(
            videos=videos,
            timesteps=[step.t for step in records],
            energies={n: _table([step.energies.get(n, unknown) for step in records]) for n in names},
            shares={n: _table([step.shares.get(n, nothing) for step in records]) for n in names},
        )


def _chosen(energies: Energies) -> list[Chosen]:
    if energies is None:
        return []
    if isinstance(energies, Sequence) and all(isinstance(one, Chosen) for one in energies):
        return list(energies)
    return components("energies", energies, "sample")


def _numbers(values: Tensor) -> list[float | None]:
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]


def _table(rows: Sequence[Tensor]) -> Tensor:
    """(S, B) on the CPU, float32."""
    return torch.stack([row.detach().float().cpu() for row in rows]) if rows else torch.empty(0)


def _joined(batches: Sequence[GuidedVideos]) -> GuidedVideos:
    first = batches[0]
    return GuidedVideos(
        videos=torch.cat([one.videos.cpu() for one in batches]),
        timesteps=first.timesteps,
        energies={name: torch.cat([one.energies[name] for one in batches], dim=1) for name in first.energies},
        shares={name: torch.cat([one.shares[name] for one in batches], dim=1) for name in first.shares},
    )
