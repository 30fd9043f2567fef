"""Gradients of energies of the output: functions of the predicted clean latents, without a pass through the network.

The network's output counts as constant, so that dE/dz = dE/dx0 dx0/dz with dx0/dz = 1/alpha (eps), alpha (v), 1 (flow).

Legend: B samples; latents (B, C, F, H, W).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from guidedcd.config.run import Run
from guidedcd.diffusion.guidance import TeacherStep
from guidedcd.diffusion.schedule import NoiseSchedule, clean_slope, expand
from guidedcd.diffusion.seen import Decoder, Seen, seen_of_latents, seen_of_output
from guidedcd.energies.gradients import Energy, EnergyTerm, blamed, check_finite, energy_values, kept
from guidedcd.energies.traits import check_reference, check_traits, is_reference_free, output_names
from guidedcd.models.teachers.contract import decoded_frames
from guidedcd.models.teachers.protocol import Teacher


def seen_of_step(
    schedule: NoiseSchedule,
    step: TeacherStep,
    captions: Sequence[str] = (),
    decoder: Decoder | None = None,
    *,
    guided: bool = True,
    frames: int | None = None,
) -> Seen:
    """What an energy of the output receives at the start of a step, from the teacher's two predictions.

    Args:
        schedule: Noise levels.
        step: The start of the step.
        captions: B texts.
        decoder: Turns latents into pixels.
        guided: Whether `guided` is the prediction under classifier-free guidance; without, it is that with the caption
            alone, as for a reference.
        frames: Frames of the decoded video, see `Seen.frames`.
    """
    output = step.output if guided else None
    return seen_of_output(schedule, step.z, step.t, step.o_c, captions, decoder, guided_output=output, frames=frames)


def output_gradients(seen: Seen, terms: Sequence[EnergyTerm], *, check: bool = True) -> list[Tensor]:
    """Each energy's gradient with respect to the noisy latents, with the network's output held constant.

    Args:
        seen: See `seen_of_step`.
        terms: The energies with their references.
        check: Whether to check that the gradients are finite, which waits for the device.

    Returns:
        One gradient like `seen.z` per term, without a gradient of its own.

    Raises:
        GuidedCDError: An energy returned something else than (B,) numbers that depend on the predicted clean latents,
            changed its arguments, or a gradient is not finite.
    """
    gradients = []
    slope = clean_slope(expand(seen.alpha, seen.z), seen.prediction)
    # Energies are computed in the latents' precision, whatever the precision of the training.
    with torch.enable_grad(), torch.autocast(seen.z.device.type, enabled=False):
        seen = seen.with_leaves()
        for term in terms:
            with blamed(term):
                total = energy_values(term, seen).sum()
                parts = torch.autograd.grad(total, [seen.x0, seen.guided], allow_unused=True)
            gradient = slope * sum(part for part in parts if part is not None)
            if check:
                check_finite(term, gradient, seen.captions)
            gradients.append(gradient.detach())
    return gradients


class OutputGradients:
    """The gradients of a run's energies of the output in the training step, from what the latent store has."""

    def __init__(self, run: Run, teacher: Teacher) -> None:
        """Build the energies of the output of `run` for a teacher.

        Raises:
            GuidedCDError: An attribute of an energy is wrong, or training does not have its reference.
        """
        self.schedule, self.decoder = teacher.schedule, teacher.decode
        self.frames = functools.partial(decoded_frames, teacher)
        names = output_names(run)
        self.energies: dict[str, Energy] = {
            chosen.name: chosen.build() for chosen in run.chosen("energy") if chosen.name in names
        }
        self.kind_of: dict[str, str] = {}
        """By energy with a reference, its kind."""
        self.plugins = {name: str(run.component("energy", name).plugin) for name in names}
        for name, energy in self.energies.items():
            config, whose = run.energies[name], f"energy '{name}' of {self.plugins[name]}"
            check_traits(energy, config, whose)
            if is_reference_free(energy):
                continue
            check_reference(config, name, whose)
            self.kind_of[name] = config.reference

    def __call__(
        self, step: TeacherStep, z0: Tensor, captions: Sequence[str], *, check: bool = False
    ) -> dict[str, Tensor]:
        """By energy, its gradient like `z`.

        Args:
            step: The start of a guided step, with the teacher's predictions.
            z0: Clean latents of the samples, like `step.z`.
            captions: B texts.
            check: As in `output_gradients`; a step whose loss is not finite stops the training anyway.

        Raises:
            GuidedCDError: As `output_gradients`.
        """
        if not self.energies:
            return {}
        seen = seen_of_step(self.schedule, step, captions, self.decoder, frames=self.frames(z0.shape))
        references = self._references(step, z0, captions)
        terms = [
            EnergyTerm(
                name=name,
                energy=energy,
                reference=kept(energy, references[self.kind_of[name]]) if name in self.kind_of else None,
                plugin=self.plugins[name],
            )
            for name, energy in self.energies.items()
        ]
        gradients = output_gradients(seen, terms, check=check)
        return dict(zip(self.energies, gradients, strict=True))

    def rehearse(self, shape: Sequence[int], device: torch.device, seed: int = 0) -> None:
        """Take every gradient once, on noise in latents of this shape (C, F, H, W), at the middle of the schedule.

        Raises:
            GuidedCDError: An energy breaks its contract.
        """
        if not self.energies:
            return
        generator = torch.Generator().manual_seed(seed)
        z, z0, o_c, o_u = (torch.randn(1, *shape, generator=generator).to(device) for _ in range(4))
        t = torch.full((1,), len(self.schedule) // 2, device=device)
        self(TeacherStep(z, t, o_c, o_u, torch.ones(1, device=device)), z0, ["a ball rolls to the left"], check=True)

    def _references(self, step: TeacherStep, z0: Tensor, captions: Sequence[str]) -> Mapping[str, Seen]:
        """By kind of reference that the energies compare with, the clip itself at the same noise level, or clean."""
        kinds = set(self.kind_of.values())
        references, frames = {}, self.frames(z0.shape)
        if "prediction" in kinds:
            references["prediction"] = seen_of_step(
                self.schedule, step, captions, self.decoder, guided=False, frames=frames
            )
        if "clean" in kinds:
            references["clean"] = seen_of_latents(z0, step.t, captions, self.decoder, frames=frames)
        return references
