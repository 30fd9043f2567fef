"""The consistency loss of one step: pure functions of tensors and networks (Algorithm 2).

Legend: B batch, C channels, F frames, H/W latent size, E energies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from guidedcd.config.sections import Solver
from guidedcd.diffusion.guidance import combine, guided_step, lambda_input, strength_from_relative
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.plugins.configs import EnergyConfig

Network = Callable[..., Tensor]
"""Called as network(z, t, cond, omega, lambdas), says what a denoiser says."""


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
        batch: See `guidedcd.batches.Batch`; its strengths are already 0 where a sample is not guided.
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


def distance(
    student: Network,
    schedule: NoiseSchedule,
    z: Tensor,
    t: Tensor,
    z_next: Tensor,
    t_next: Tensor,
    cond: dict[str, Tensor],
    omega: Tensor,
    lambdas: Tensor | None = None,
    *,
    target: Network | None = None,
    loss: str = "huber",
    huber_c: float = 0.001,
) -> tuple[Tensor, Tensor]:
    """Distance between f(z, t) and f(z', t'), the second without gradient.

    Args:
        student: The network in training.
        schedule: Noise levels; f = c_skip z + c_out x0.
        z: Noisy latents (B, C, F, H, W) at `t` (B,).
        t: Training timesteps.
        z_next: The teacher's guided step from `z`, like `z`, at `t_next` (B,).
        t_next: Where the step ends.
        cond: Conditioning with first dimension B.
        omega: Guidance strength (B,).
        lambdas: Energy inputs (B, E), the same for both sides, or None for a student without energies.
        target: Another network for the second side; None takes the student itself.
        loss: "huber" for mean(sqrt(d^2 + c^2) - c), "l2" for mean(d^2), in float32 at least.
        huber_c: The constant c.

    Returns:
        (loss scalar, f(z, t) like `z`).
    """
    f = schedule.consistency(z, student(z, t, cond, omega, lambdas), t)
    with torch.no_grad():
        wanted = schedule.consistency(z_next, (target or student)(z_next, t_next, cond, omega, lambdas), t_next)
    return gap(f, wanted, loss, huber_c), f


def gap(one: Tensor, other: Tensor, loss: str, huber_c: float) -> Tensor:
    """Mean distance of two tensors of one shape: "huber" or "l2" as in `distance`, in float32 at least."""
    dtype = torch.promote_types(one.dtype, torch.float32)
    squares = (one.to(dtype) - other.to(dtype)).square()
    if loss == "huber":
        return ((squares + huber_c**2).sqrt() - huber_c).mean()
    if loss == "l2":
        return squares.mean()
    raise ValueError(f"loss must be 'huber' or 'l2': {loss!r}")
