"""Sampling with a teacher: classifier-free guidance, two solvers, and energies that steer.

Legend: B batch, C channels, F frames, H/W latent size.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from guidedcd.diffusion.guidance import Rule, TeacherStep, combine, guidance_term, guided_from, guided_step
from guidedcd.energies import inversion
from guidedcd.energies.gradients import Energy, EnergyTerm, energy_gradients, is_reference_free, needs_of
from guidedcd.errors import GuidedCDError
from guidedcd.models.teachers.protocol import Cond, Teacher
from guidedcd.plugins.configs import EnergyConfig


@attrs.frozen(kw_only=True, eq=False)
class Guide:
    """An energy that steers the teacher's own sampler towards reference videos."""

    energy: Energy
    """Called as energy(seen, reference) -> (B,)."""
    config: EnergyConfig
    """scale or relative, fraction, reference."""
    z0: Tensor
    """Clean latents of the reference videos (B, C, F, H, W)."""
    cond: Cond
    """Conditioning of the reference videos' captions."""
    noise: Tensor | None = None
    """For reference="single-step": noise like `z0`, other than the sample's."""
    name: str = attrs.field()
    """For errors; by default the name of the energy's class."""

    @name.default
    def _class_name(self) -> str:
        return type(self.energy).__name__


def teacher_sample(
    teacher: Teacher,
    cond: Cond,
    null: Cond,
    latents: Tensor,
    steps: int,
    omega: float | Tensor,
    solver: str = "ddim",
    energies: Sequence[Guide] | None = None,
    *,
    rule: str = "official",
    factor: str = "official",
) -> Tensor:
    """Sample with the teacher and classifier-free guidance, optionally steered by energies.

    Args:
        teacher: The model.
        cond: Conditioning (B, ...).
        null: Conditioning of the empty caption (B, ...).
        latents: Initial noise (B, C, F, H, W).
        steps: Points of the solver's grid.
        omega: Guidance strength, one or (B,); 0 costs one network call per step instead of two.
        solver: "ddim", or "dpm++" for diffusers' second-order multistep solver (without energies).
        energies: What steers, each with its references; DDIM only.
        rule: How a gradient enters a step, see `guidance`.
        factor: The noise factor, see `guidance`.

    Returns:
        Latents like `latents` at timestep 0 ("ddim") or clean ("dpm++").
    """
    omega = torch.as_tensor(omega, dtype=torch.float32, device=latents.device).expand(latents.shape[0])
    if solver == "dpm++":
        if energies:
            raise GuidedCDError("energies steer the ddim solver only; use solver ddim.")
        return _dpm(teacher, cond, null, latents, steps, omega)
    if solver != "ddim":
        raise GuidedCDError(f"no solver named '{solver}'. Use ddim or dpm++.")
    schedule, z, guidance_rule = teacher.schedule, latents, Rule(rule, factor)
    references = [_References(teacher, guide, steps) for guide in energies or ()]
    for index, timestep in reversed(list(enumerate(schedule.grid(steps).tolist()))):
        t = torch.full((z.shape[0],), timestep, device=z.device)
        active = [one for one in references if index >= one.first]
        gradients: list[Tensor] = []
        if active:
            with torch.no_grad():
                o_u = teacher.net(z, t, null)
            o_c, gradients = energy_gradients(teacher, z, t, cond, [one.term(t, index) for one in active])
        else:
            o_c, o_u = _both(teacher, z, t, cond, null, omega)
        step = TeacherStep(z, t, o_c, o_u, omega)
        terms = []
        for one, score in zip(active, gradients, strict=True):
            config = one.guide.config
            strength = torch.full_like(omega, config.strength)
            terms.append(guidance_term(schedule, step, score, strength, config.is_relative, guidance_rule))
        z = guided_step(schedule, step, schedule.previous(t, steps), terms, guidance_rule)
    return z


class _References:
    """A guide's references at every guided grid point; an inversion is computed once, before sampling."""

    def __init__(self, teacher: Teacher, guide: Guide, steps: int) -> None:
        self.teacher, self.guide = teacher, guide
        self.first = guided_from(guide.config.fraction, steps)
        """The smallest guided index of the grid."""
        self.inverted: dict[int, Tensor] = {}
        if is_reference_free(guide.energy):
            return
        if guide.config.reference == "single-step" and guide.noise is None:
            raise GuidedCDError("a guide with reference 'single-step' needs noise of its own.")
        if guide.config.reference == "inversion" and self.first < steps:
            trajectory = inversion.invert(teacher, guide.z0, guide.cond, steps, steps - 1)
            self.inverted = {index: z for index, z in trajectory if index >= self.first}

    def term(self, t: Tensor, index: int) -> EnergyTerm:
        """The energy with its reference at grid point `index`, whose timestep is `t` (B,)."""
        guide, schedule = self.guide, self.teacher.schedule
        if is_reference_free(guide.energy):
            return EnergyTerm(name=guide.name, energy=guide.energy, reference=None)
        match guide.config.reference:
            case "inversion":
                z, at = self.inverted[index], t
            case "single-step":
                assert guide.noise is not None  # see the constructor
                z, at = inversion.single_step(schedule, guide.z0, guide.noise, t)
            case _:
                z, at = inversion.clean(guide.z0, t)
        with torch.no_grad():
            reference = self.teacher.seen(z, at, guide.cond, needs_of([guide.energy]))
        return EnergyTerm(name=guide.name, energy=guide.energy, reference=reference)


@torch.no_grad()
def _both(teacher: Teacher, z: Tensor, t: Tensor, cond: Cond, null: Cond, omega: Tensor) -> tuple[Tensor, Tensor]:
    """The conditional and the unconditional output, from one call of twice the batch; without guidance the same one."""
    if not bool(omega.any()):
        output = teacher.net(z, t, cond)
        return output, output
    both = {name: torch.cat([cond[name], null[name]]) for name in cond}
    o_c, o_u = teacher.net(torch.cat([z, z]), torch.cat([t, t]), both).chunk(2)
    return o_c, o_u


@torch.no_grad()
def _dpm(teacher: Teacher, cond: Cond, null: Cond, latents: Tensor, steps: int, omega: Tensor) -> Tensor:
    from diffusers import DPMSolverMultistepScheduler

    schedule = teacher.schedule
    names = {"eps": "epsilon", "v": "v_prediction"}
    if schedule.prediction not in names:
        raise GuidedCDError("solver dpm++ works with eps and v models; use ddim for flow models.")
    abar = schedule.alphas_cumprod.double().cpu()
    betas = 1 - abar / torch.cat([abar.new_ones(1), abar[:-1]])
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=len(schedule),
        trained_betas=betas.float().tolist(),
        prediction_type=names[schedule.prediction],
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(steps, device=latents.device)
    z = latents
    for at in scheduler.timesteps:
        t = at.long().expand(z.shape[0])
        o_c, o_u = _both(teacher, z, t, cond, null, omega)
        z = scheduler.step(combine(o_c, o_u, omega), at, z, return_dict=False)[0]
    return z
