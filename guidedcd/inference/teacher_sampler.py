"""Sampling with a teacher: classifier-free guidance, two solvers, and energies that steer.

Legend: B batch, C channels, F frames, H/W latent size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from guidedcd.diffusion.guidance import Rule, TeacherStep, combine, guidance_term, guided_from, guided_step
from guidedcd.energies import inversion
from guidedcd.errors import GuidedCDError
from guidedcd.plugins.configs import EnergyConfig


@attrs.frozen(kw_only=True, eq=False)
class Guide:
    """An energy that steers the teacher's own sampler towards reference videos."""

    energy: Any
    """Called as energy(seen, reference) -> (B,)."""
    config: EnergyConfig
    """scale or relative, fraction, reference."""
    z0: Tensor
    """Clean latents of the reference videos (B, C, F, H, W)."""
    cond: dict[str, Tensor]
    """Conditioning of the reference videos' captions."""
    noise: Tensor | None = None
    """For reference="single-step": noise like `z0`, other than the sample's."""


def teacher_sample(
    teacher: Any,
    cond: dict[str, Tensor],
    null: dict[str, Tensor],
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
    schedule, z, how = teacher.schedule, latents, Rule(rule, factor)
    tracks = [_Track(teacher, guide, steps) for guide in energies or ()]
    for index, at in reversed(list(enumerate(schedule.grid(steps).tolist()))):
        t = torch.full((z.shape[0],), at, device=z.device)
        active = [track for track in tracks if index >= track.first]
        if active:
            with torch.no_grad():
                o_u = teacher.net(z, t, null)
            o_c, scores = _scores(teacher, z, t, cond, active, index)
        else:
            (o_c, o_u), scores = _both(teacher, z, t, cond, null, omega), []
        step = TeacherStep(z, t, o_c, o_u, omega)
        terms = []
        for track, score in zip(active, scores, strict=True):
            config = track.guide.config
            relative = config.relative is not None
            strength = torch.full_like(omega, config.relative if relative else config.scale)
            terms.append(guidance_term(schedule, step, score, strength, relative, how))
        z = guided_step(schedule, step, schedule.previous(t, steps), terms, how)
    return z


class _Track:
    """One guide's references at every guided grid point, computed once before sampling."""

    def __init__(self, teacher: Any, guide: Guide, steps: int) -> None:
        self.teacher, self.guide = teacher, guide
        self.first = guided_from(guide.config.fraction, steps)
        self.latents: dict[int, Tensor] = {}
        if guide.config.reference == "single-step" and guide.noise is None:
            raise GuidedCDError("a guide with reference 'single-step' needs noise of its own.")
        if guide.config.reference == "inversion" and self.first < steps:
            track = inversion.invert(teacher, guide.z0, guide.cond, steps, steps - 1)
            self.latents = {index: z for index, z in track if index >= self.first}

    def seen(self, t: Tensor, index: int) -> Any:
        """What the teacher sees in the references at grid point `index`."""
        guide = self.guide
        match guide.config.reference:
            case "inversion":
                z, when = self.latents[index], t
            case "single-step":
                z, when = inversion.single_step(self.teacher.schedule, guide.z0, guide.noise, t)
            case _:
                z, when = inversion.clean(guide.z0, t)
        with torch.no_grad():
            return self.teacher.seen(z, when, guide.cond, guide.energy.needs)


def _scores(
    teacher: Any, z: Tensor, t: Tensor, cond: dict[str, Tensor], tracks: Sequence[_Track], index: int
) -> tuple[Tensor, list[Tensor]]:
    """The conditional output and each energy's gradient at `z`, from one forward pass."""
    needs = tuple(dict.fromkeys(need for track in tracks for need in track.guide.energy.needs))
    with torch.enable_grad():
        z = z.detach().requires_grad_(True)
        seen = teacher.seen(z, t, cond, needs)
        scores = []
        for number, track in enumerate(tracks):
            energy = track.guide.energy(seen, track.seen(t, index)).sum()
            (score,) = torch.autograd.grad(energy, z, retain_graph=number + 1 < len(tracks))
            scores.append(score.detach())
    return seen.output.detach(), scores


@torch.no_grad()
def _both(
    teacher: Any, z: Tensor, t: Tensor, cond: dict[str, Tensor], null: dict[str, Tensor], omega: Tensor
) -> tuple[Tensor, Tensor]:
    """The conditional and the unconditional output, from one call of twice the batch; without guidance the same one."""
    if not bool(omega.any()):
        output = teacher.net(z, t, cond)
        return output, output
    both = {name: torch.cat([cond[name], null[name]]) for name in cond}
    o_c, o_u = teacher.net(torch.cat([z, z]), torch.cat([t, t]), both).chunk(2)
    return o_c, o_u


@torch.no_grad()
def _dpm(
    teacher: Any, cond: dict[str, Tensor], null: dict[str, Tensor], latents: Tensor, steps: int, omega: Tensor
) -> Tensor:
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
