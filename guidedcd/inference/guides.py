"""Energies that guide a teacher's sampler, and the reference of each at every point of the solver's grid.

Legend: B batch, C channels, F frames, H/W latent size.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from guidedcd.diffusion.guidance import guided_from
from guidedcd.diffusion.seen import Seen, seen_of_latents
from guidedcd.energies import inversion
from guidedcd.energies.gradients import Energy, EnergyTerm, kept, observed
from guidedcd.energies.traits import is_of_output, is_reference_free, needs_video
from guidedcd.errors import GuidedCDError
from guidedcd.models.teachers.protocol import Cond, Teacher
from guidedcd.plugins.configs import EnergyConfig


@attrs.frozen(kw_only=True, eq=False)
class Guide:
    """An energy that guides the teacher's own sampler, usually towards reference videos."""

    energy: Energy
    """Called as energy(seen, reference) -> (B,)."""
    config: EnergyConfig
    """scale or relative, fraction, reference."""
    z0: Tensor | None = None
    """Clean latents of the reference videos (B, C, F, H, W); None for an energy that needs no video."""
    cond: Cond | None = None
    """Conditioning of the reference videos' captions."""
    captions: Sequence[str] = ()
    """The reference videos' captions (B), which the energy finds in its reference."""
    noise: Tensor | None = None
    """For the references "single-step" and "prediction": noise like `z0`, other than the sample's."""
    plugin: str | None = None
    """The plugin that the energy comes from, for errors."""
    inverted: dict[int, dict[int, Tensor]] = attrs.field(factory=dict, repr=False)
    """By number of steps, the inverted latents of the reference at points of the grid; filled when they are needed."""
    name: str = attrs.field()
    """For errors; by default the name of the energy's class."""

    @name.default
    def _class_name(self) -> str:
        return type(self.energy).__name__


class References:
    """The references of guides at the points of a grid; inversions are computed once, before sampling."""

    def __init__(self, teacher: Teacher, guides: Sequence[Guide], steps: int, *, watch: bool = False) -> None:
        """Invert what has to be inverted.

        Args:
            teacher: The model.
            guides: The energies with their clean references.
            steps: Points of the solver's grid.
            watch: Whether references are needed at every point of the grid, not only where the energy guides.

        Raises:
            GuidedCDError: A single-step reference has no noise.
        """
        self.teacher = teacher
        self.first = {id(guide): guided_from(guide.config.fraction, steps) for guide in guides}
        """The smallest guided index of each guide, by its identity."""
        self.inverted: dict[int, dict[int, Tensor]] = {}
        """By the identity of clean latents, their latents at each needed point."""
        for guide in guides:
            if is_reference_free(guide.energy) or guide.z0 is None:
                continue
            if guide.config.reference in ("single-step", "prediction") and guide.noise is None:
                raise GuidedCDError(f"a guide with reference '{guide.config.reference}' needs noise of its own.")
            if guide.config.reference == "inversion" and id(guide.z0) not in self.inverted:
                assert guide.z0 is not None and guide.cond is not None  # its energy has a reference
                sharing = [one for one in guides if _pass_of(one) == _pass_of(guide)]
                first = 0 if watch else min(self.first[id(one)] for one in sharing)
                if first < steps:
                    inverted = guide.inverted.setdefault(steps, {})
                    if not set(range(first, steps)) <= set(inverted):
                        trajectory = inversion.invert(teacher, guide.z0, guide.cond, steps, steps - 1)
                        inverted.update((index, z) for index, z in trajectory if index >= first)
                    self.inverted[id(guide.z0)] = inverted

    def guides_at(self, guides: Sequence[Guide], index: int) -> list[Guide]:
        """Those of `guides` that act on the step from grid point `index`."""
        return [guide for guide in guides if index >= self.first[id(guide)]]

    def terms(self, guides: Sequence[Guide], t: Tensor, index: int, own: Seen | None = None) -> list[EnergyTerm]:
        """The energies with their references at grid point `index`, whose timestep is `t` (B,), in order.

        Args:
            guides: Energies through the network, or energies of the output.
            t: Timesteps (B,).
            index: The grid point.
            own: The samples' own prediction without guidance, for energies of the output without a reference video.
        """
        passes: dict[tuple[str, int] | None, Seen] = {}
        terms = []
        for guide in guides:
            reference = None
            if not is_reference_free(guide.energy):
                key = _pass_of(guide)
                if key not in passes:
                    sharing = [one for one in guides if _pass_of(one) == key]
                    passes[key] = self._seen(sharing, t, index, own)
                reference = kept(guide.energy, passes[key])
            terms.append(EnergyTerm(name=guide.name, energy=guide.energy, reference=reference, plugin=guide.plugin))
        return terms

    def _seen(self, guides: Sequence[Guide], t: Tensor, index: int, own: Seen | None) -> Seen:
        """The reference that `guides` share: a forward pass, or known latents."""
        guide, schedule = guides[0], self.teacher.schedule
        if guide.z0 is None and not needs_video(guide.energy, guide.config):
            assert own is not None  # the sampler passes it to energies of the output
            return own
        assert guide.z0 is not None and guide.cond is not None  # their energies have a reference
        if guide.config.reference == "clean" and is_of_output(guide.energy):
            return seen_of_latents(
                guide.z0, t, guide.captions, self.teacher.decode, frames=self.teacher.geometry.frames
            )
        match guide.config.reference:
            case "inversion":
                z, at = self.inverted[id(guide.z0)][index], t
            case "single-step" | "prediction":
                assert guide.noise is not None  # see the constructor
                z, at = inversion.single_step(schedule, guide.z0, guide.noise, t)
            case _:
                z, at = inversion.clean(guide.z0, t)
        with torch.no_grad():
            seen = observed(self.teacher, z, at, guide.cond, [one.energy for one in guides], guide.captions)
        return attrs.evolve(seen, guided_output=seen.output) if is_of_output(guide.energy) else seen


def _pass_of(guide: Guide) -> tuple[str, int] | None:
    """What guides with the same forward passes of references share; None without a reference."""
    return None if is_reference_free(guide.energy) else (guide.config.reference, id(guide.z0))
