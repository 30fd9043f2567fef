"""Sampling with a teacher: classifier-free guidance, two solvers, and energies that guide.

Legend: B batch, C channels, F frames, H/W latent size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from guidedcd.diffusion.guidance import OFFICIAL, Rule, TeacherStep, guidance_term, guided_share, guided_step
from guidedcd.diffusion.guiders import PLAIN, Guider
from guidedcd.diffusion.seen import Seen
from guidedcd.energies.gradients import Energy, EnergyTerm, Reference, energy_gradients, needs_of, observed
from guidedcd.energies.output import output_gradients, seen_of_step
from guidedcd.energies.traits import is_of_output
from guidedcd.errors import GuidedCDError
from guidedcd.inference.guides import Guide, References
from guidedcd.models.teachers.contract import decoded_frames
from guidedcd.models.teachers.protocol import Cond, Teacher


@attrs.frozen(kw_only=True, eq=False)
class SamplingStep:
    """One step of a teacher's sampler."""

    index: int
    """The grid point from which the step starts, 0 the cleanest."""
    t: int
    """Its training timestep."""
    latents: Tensor
    """Latents after the step (B, C, F, H, W)."""
    energies: Mapping[str, Tensor]
    """By guide's name, the energy before the step (B,); guides that do not act are missing unless they are watched."""
    shares: Mapping[str, Tensor]
    """By name of each guide that acts, the norm of the guided term relative to the norm of the prediction (B,)."""


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
    captions: Sequence[str] = (),
    rule: str = "official",
    factor: str = "official",
    guider: Guider = PLAIN,
    generators: Sequence[torch.Generator] | None = None,
) -> Tensor:
    """Sample with the teacher and classifier-free guidance, optionally guided by energies.

    Args:
        teacher: The model.
        cond: Conditioning (B, ...).
        null: Conditioning of the empty caption (B, ...).
        latents: Initial noise (B, C, F, H, W).
        steps: Points of the solver's grid.
        omega: Guidance strength, one or (B,); 0 costs one network call per step instead of two.
        solver: "ddim", "dpm++" for diffusers' second-order multistep solver, "own" for the sampler of the model's own
            pipeline, or "auto", see `chosen_solver`. Energies guide "ddim" only.
        energies: The guides, each with its references; DDIM only.
        captions: B texts that the energies receive.
        rule: How a gradient enters a step, see `guidance`.
        factor: The noise factor, see `guidance`.
        guider: How the predictions with and without the caption become one.
        generators: Sources of noise (B), for samplers of pipelines that draw some; by default seeded with 0, 1, 2, ...

    Returns:
        Latents like `latents` at timestep 0 ("ddim") or clean (others).

    Raises:
        GuidedCDError: There is no such solver, or the solver allows no energies.
    """
    solver = chosen_solver(teacher, solver, bool(energies))
    if solver == "dpm++":
        return _dpm(teacher, cond, null, latents, steps, _batched(omega, latents), guider)
    if solver == "own":
        noises = generators or [torch.Generator().manual_seed(seed) for seed in range(len(latents))]
        return _own(teacher, cond, null, latents, steps, _batched(omega, latents), guider, noises)
    guides = energies or ()
    options: dict[str, Any] = {"captions": captions, "rule": Rule(rule, factor), "guider": guider}
    for step in teacher_steps(teacher, cond, null, latents, steps, omega, guides, **options):
        latents = step.latents
    return latents


def chosen_solver(teacher: Teacher, solver: str, has_energies: bool) -> str:
    """The solver of a teacher: "ddim", "dpm++" or "own".

    Args:
        teacher: The model.
        solver: One of them, or "auto": the sampler of the model's own pipeline if the teacher has one and no energy
            guides, otherwise "ddim".
        has_energies: Whether energies guide or are watched.

    Raises:
        GuidedCDError: There is no such solver, or it allows no energies.
    """
    has_own = callable(getattr(teacher, "sampler", None))
    if solver == "auto":
        return "own" if has_own and not has_energies else "ddim"
    if solver not in ("ddim", "dpm++", "own"):
        raise GuidedCDError(f"no solver named '{solver}'. Use auto, own, ddim or dpm++.")
    if has_energies and solver != "ddim":
        raise GuidedCDError("energies guide the ddim solver only. Use --solver ddim.")
    if solver == "own" and not has_own:
        raise GuidedCDError("this teacher has no sampler of its own. Use --solver ddim.")
    return solver


def teacher_steps(
    teacher: Teacher,
    cond: Cond,
    null: Cond,
    latents: Tensor,
    steps: int,
    omega: float | Tensor,
    guides: Sequence[Guide] = (),
    *,
    captions: Sequence[str] = (),
    rule: Rule = OFFICIAL,
    guider: Guider = PLAIN,
    watch: bool = False,
    guided: bool = True,
) -> Iterator[SamplingStep]:
    """Sample with DDIM (eta 0, for flow models Euler) and yield every step; the last one's latents are the result.

    Args:
        teacher: The model.
        cond: Conditioning (B, ...).
        null: Conditioning of the empty caption (B, ...).
        latents: Initial noise (B, C, F, H, W).
        steps: Points of the solver's grid.
        omega: Guidance strength, one or (B,); 0 costs one network call per step instead of two.
        guides: The energies with their references. Each acts on the noisiest fraction of the steps that its config has.
        captions: B texts that the energies receive.
        rule: How a gradient enters a step.
        guider: How the predictions with and without the caption become one.
        watch: Evaluate every energy at every step, also where it does not act; the latents stay the same.
        guided: Whether energies act at all; without, they can only be watched.

    Raises:
        GuidedCDError: A single-step reference has no noise, or an energy has no finite gradient.
    """
    strengths, schedule, z = _batched(omega, latents), teacher.schedule, latents
    references = References(teacher, guides, steps, watch=watch)
    for index, timestep in reversed(list(enumerate(schedule.grid(steps).tolist()))):
        t = torch.full((z.shape[0],), timestep, device=z.device)
        active = references.guides_at(guides, index) if guided else []
        passive = [guide for guide in guides if guide not in active] if watch else []
        network, output = _by_path(active)
        measured = [_Measured(term) for term in references.terms(network, t, index)]
        gradients: list[Tensor] = []
        if network:
            with torch.no_grad():
                o_u = teacher.net(z, t, null)
            o_c, gradients = energy_gradients(teacher, z, t, cond, [one.term for one in measured], captions)
        else:
            o_c, o_u = _both(teacher, z, t, cond, null, strengths)
        values = {one.term.name: one.value for one in measured}
        scores = dict(zip(map(id, network), gradients, strict=True))
        watched_network, watched_output = _by_path(passive)
        if watched_network:
            values |= _watched(teacher, z, t, cond, references.terms(watched_network, t, index), captions)
        step = TeacherStep(z, t, o_c, o_u, strengths, guider)
        if output or watched_output:
            seen, own = (
                seen_of_step(schedule, step, captions, teacher.decode, guided=cfg, frames=decoded_frames(teacher))
                for cfg in (True, False)
            )
            measured = [_Measured(term) for term in references.terms(output, t, index, own)]
            gradients = output_gradients(seen, [one.term for one in measured])
            scores |= zip(map(id, output), gradients, strict=True)
            values |= {one.term.name: one.value for one in measured}
            with torch.no_grad():
                watched = references.terms(watched_output, t, index, own)
                values |= {term.name: term.energy(seen, term.reference) for term in watched}
        terms, shares = [], {}
        for guide in active:
            config = guide.config
            strength = torch.full_like(strengths, config.strength)
            terms.append(guidance_term(schedule, step, scores[id(guide)], strength, config.is_relative, rule))
            shares[guide.name] = guided_share(schedule, step, terms[-1], rule)
        z = guided_step(schedule, step, schedule.previous(t, steps), terms, rule)
        yield SamplingStep(index=index, t=timestep, latents=z, energies=values, shares=shares)


def _by_path(guides: Sequence[Guide]) -> tuple[list[Guide], list[Guide]]:
    """The guides whose gradient passes through the network, and those of the output."""
    of_output = [guide for guide in guides if is_of_output(guide.energy)]
    return [guide for guide in guides if guide not in of_output], of_output


class _Measured:
    """An energy that remembers its last value, as an energy of its own."""

    def __init__(self, term: EnergyTerm) -> None:
        self.energy: Energy = term.energy
        self.needs = needs_of([term.energy])
        self.records_only: bool = getattr(term.energy, "records_only", False)
        self.term: EnergyTerm = attrs.evolve(term, energy=self)
        self.value = torch.empty(0)

    def __call__(self, seen: Seen, reference: Reference) -> Tensor:
        value = self.energy(seen, reference)
        if isinstance(value, Tensor):  # `energy_gradients` reports anything else
            self.value = value.detach()
        return value


@torch.no_grad()
def _watched(
    teacher: Teacher, z: Tensor, t: Tensor, cond: Cond, terms: Sequence[EnergyTerm], captions: Sequence[str]
) -> dict[str, Tensor]:
    """The energies (B,) by name, of a forward pass of their own."""
    seen = observed(teacher, z, t, cond, [term.energy for term in terms], captions)
    return {term.name: term.energy(seen, term.reference) for term in terms}


def _batched(omega: float | Tensor, latents: Tensor) -> Tensor:
    """The guidance strength of each sample (B,), float32."""
    return torch.as_tensor(omega, dtype=torch.float32, device=latents.device).expand(latents.shape[0])


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
def _own(
    teacher: Teacher,
    cond: Cond,
    null: Cond,
    latents: Tensor,
    steps: int,
    omega: Tensor,
    guider: Guider,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Sample as the model's own pipeline does, whose times may lie between training timesteps."""
    has_sampler: Any = teacher
    sampler, z = has_sampler.sampler(steps), latents
    for index, time in enumerate(sampler.times):
        o_c, o_u = _both(teacher, z, time.float().expand(z.shape[0]), cond, null, omega)
        z = sampler.step(index, guider(o_c, o_u, omega), z, list(generators))
    return z


@torch.no_grad()
def _dpm(
    teacher: Teacher, cond: Cond, null: Cond, latents: Tensor, steps: int, omega: Tensor, guider: Guider
) -> Tensor:
    from diffusers import DPMSolverMultistepScheduler

    schedule = teacher.schedule
    names = {"eps": "epsilon", "v": "v_prediction"}
    if schedule.prediction not in names:
        raise GuidedCDError("solver dpm++ works with eps and v models; use ddim for flow models.")
    # Pure noise has an infinite log-SNR; diffusers' schedulers with rescale_betas_zero_snr have the same limit.
    abar = schedule.alphas_cumprod.double().cpu().clamp(min=2.0**-24)
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
        z = scheduler.step(guider(o_c, o_u, omega), at, z, return_dict=False)[0]
    return z
