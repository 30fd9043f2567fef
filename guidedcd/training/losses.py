"""The consistency loss of a batch of stored draws (Algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from guidedcd.config.sections import Solver
from guidedcd.diffusion.consistency import Network, distance, gap
from guidedcd.diffusion.guidance import combine, guided_step, lambda_input, strength_from_relative
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.plugins.configs import EnergyConfig


def consistency(
    student: Network,
    schedule: NoiseSchedule,
    batch: Any,
    *,
    grid: Tensor,
    solver: Solver,
    energies: Mapping[str, EnergyConfig],
    guided: float = 0.0,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """The loss of a batch of stored draws: noise the clean latents, take the teacher's guided step, compare.

    A student begins as the unguided teacher, and its own predictions bring guidance from one solver step to the next
    only slowly. With `guided`, it also learns the teacher's guided prediction at the same point (Meng et al. 2023,
    stage one), which costs no network call.

    Args:
        student: The network in training.
        schedule: Noise levels.
        batch: See `guidedcd.training.batches.Batch`; its strengths are already 0 where a sample is not guided.
        grid: The solver's timesteps.
        solver: How the step is guided.
        energies: In the order of the columns of `batch.strengths`.
        guided: Weight of the distance to the clean latents that the teacher's guided prediction means, at least 0.
        options: Of `distance`.

    Returns:
        (loss scalar, predicted clean latents (B, C, F, H, W)).
    """
    t = grid.to(batch.index.device)[batch.index]
    t_next = schedule.previous(t, solver.steps)
    z = schedule.add_noise(batch.z0, batch.noise, t)
    # The store may keep half precision; the step is computed in the dtype of the latents.
    step = (z, batch.cond_output.to(z.dtype), batch.uncond_output.to(z.dtype), batch.omega, t)
    how = (solver.rule, solver.noise_factor)
    terms, inputs = [], []
    for (name, config), strength in zip(energies.items(), batch.strengths.unbind(dim=1), strict=True):
        relative, score = config.relative is not None, batch.scores[name].to(z.dtype)
        inputs.append(lambda_input(strength, relative))
        terms.append((score, strength_from_relative(schedule, *step, score, strength, *how) if relative else strength))
    z_next = guided_step(schedule, *step, t_next, terms, *how)
    lambdas = torch.stack(inputs, dim=1) if inputs else None
    loss, f = distance(student, schedule, z, t, z_next, t_next, batch.cond, batch.omega, lambdas, **options)
    if guided:
        goal = schedule.consistency(z, combine(*step[1:4]), t)
        loss = loss + guided * gap(f, goal, options.get("loss", "huber"), options.get("huber_c", 0.001))
    return loss, f
