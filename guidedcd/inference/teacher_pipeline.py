"""A teacher that samples videos of prompts, with energies that steer it.

Legend: B videos, F frames, H/W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from guidedcd.config.from_python import components
from guidedcd.errors import GuidedCDError
from guidedcd.inference.pipeline import initial, prompts_and_seeds
from guidedcd.inference.teacher_sampler import Guide, teacher_sample
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.plugins.configs import EnergyConfig

REFERENCE_DRAW = 2**20
"""Number of the draw for single-step references, larger than that of any sampling step."""


class TeacherPipeline:
    """Samples videos with a teacher; `teacher` is the teacher itself."""

    def __init__(self, teacher: Teacher) -> None:
        """Use a teacher on its device."""
        self.teacher = teacher

    def sample(
        self,
        prompts: str | Sequence[str],
        energies: str | Sequence[str] | Mapping[str, Any] | None = None,
        reference: Tensor | None = None,
        steps: int = 50,
        seeds: int | Sequence[int] | None = None,
        *,
        omega: float = 7.5,
        solver: str = "ddim",
        rule: str = "official",
        noise_factor: str = "official",
    ) -> Tensor:
        """Sample one video per prompt, optionally steered towards a reference video by energies.

        Args:
            prompts: One text, or several (B).
            energies: As in `Run.from_profile`: names, {"pta": {"relative": 0.1}}, or functions by name.
            reference: Videos (1 or B, F, 3, H, W) in [0, 1], the reference of the energies.
            steps: Points of the solver's grid.
            seeds: One seed per prompt (B); by default 0, 1, 2, ...
            omega: Guidance strength, which is diffusers' guidance_scale - 1; 0 is off.
            solver: "ddim" or "dpm++"; energies need "ddim".
            rule: How the gradient of an energy enters a step, see `guidedcd.diffusion.guidance`.
            noise_factor: "official" or "sqrt-one-minus".

        Returns:
            Videos (B, F, 3, H, W), float32 in [0, 1].

        Raises:
            GuidedCDError: An energy has no reference or does not exist, or an argument has the wrong shape or range.
        """
        teacher = self.teacher
        prompts, seeds = prompts_and_seeds(prompts, seeds)
        if not 1 <= steps <= len(teacher.schedule):
            raise GuidedCDError(f"steps must be 1 to {len(teacher.schedule)}, not {steps}.")
        cond = teacher.embed(prompts)
        guides = self._guides(energies, reference, cond, seeds)
        with torch.no_grad():  # gradients of energies switch it on for themselves
            latents = teacher_sample(
                teacher,
                cond,
                teacher.null(len(prompts)),
                initial(teacher, seeds),
                steps,
                omega,
                solver,
                guides,
                rule=rule,
                factor=noise_factor,
            )
            return teacher.decode(latents).float()

    def _guides(
        self, energies: Any, reference: Tensor | None, cond: dict[str, Tensor], seeds: Sequence[int]
    ) -> list[Guide]:
        """Each energy with the latents of its reference."""
        chosen = [] if energies is None else components("energies", energies, "sample")
        if not chosen:
            return []
        if reference is None:
            raise GuidedCDError(f"energy '{chosen[0].name}' needs a reference: a video (1 or B, F, 3, H, W) in [0, 1].")
        shape = self.teacher.geometry.pixel_shape
        if reference.dim() != 5 or tuple(reference.shape[1:]) != shape or len(reference) not in (1, len(seeds)):
            raise GuidedCDError(
                f"the reference must be (1 or {len(seeds)}, {', '.join(map(str, shape))}), "
                f"not {tuple(reference.shape)}."
            )
        with torch.no_grad():
            latents = self.teacher.encode(reference.to(self.teacher.device, torch.float32))
        latents = latents.expand(len(seeds), *latents.shape[1:])
        noise = initial(self.teacher, seeds, REFERENCE_DRAW)
        # The components of the kind energy have configs that derive from EnergyConfig.
        return [
            Guide(
                name=one.name,
                energy=one.build(),
                config=cast(EnergyConfig, one.config),
                z0=latents,
                cond=cond,
                noise=noise,
            )
            for one in chosen
        ]
