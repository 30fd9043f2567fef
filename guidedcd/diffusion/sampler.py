"""Multistep consistency sampling with a student, in a few steps.

Legend: B batch, C channels, F frames, H/W latent size, S steps, E energies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor

from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.errors import GuidedCDError


def multistep_timesteps(steps: int, origin: int = 200, timesteps: int = 1000) -> list[int]:
    """The released sampler's timesteps, descending: every (origin // steps)-th point of a grid of `origin`.

    The spacing of diffusers' `LCMScheduler` differs, for example at 16 steps.

    Args:
        steps: Number of timesteps, 1 to `origin`.
        origin: Points of the grid.
        timesteps: Training timesteps of the schedule, at least `origin`.

    Raises:
        GuidedCDError: More steps than grid points.
    """
    if not 1 <= steps <= origin <= timesteps:
        raise GuidedCDError(f"steps must be 1 to {origin}, as the sampling grid has {origin} points (got {steps}).")
    grid = [(i + 1) * (timesteps // origin) - 1 for i in range(origin)]
    return grid[:: -(origin // steps)][:steps]


def lambda_applies(t: int, fraction: float, timesteps: int = 1000) -> bool:
    """Whether a student gets an energy's strength at `t`, that is t >= timesteps (1 - fraction), rather than 0."""
    return bool(torch.tensor(t) >= timesteps * (1 - fraction))


def lambdas_at(t: int, lambdas: Tensor | None, fractions: Sequence[float], timesteps: int = 1000) -> Tensor | None:
    """A student's energy inputs (B, E) at `t`: those of energies whose fraction excludes `t` are 0.

    Args:
        t: Training timestep.
        lambdas: Energy inputs (B, E); None, for a student without energies, stays None.
        fractions: The noisiest fraction of the timesteps in which each energy acts (E), in [0, 1].
        timesteps: Training timesteps of the schedule.
    """
    if lambdas is None:
        return None
    active = [float(lambda_applies(t, fraction, timesteps)) for fraction in fractions]
    return lambdas * torch.tensor(active, device=lambdas.device)


@attrs.frozen(kw_only=True, eq=False)
class Step:
    """One step of the multistep sampler; tensors like the latents."""

    t: int
    output: Tensor
    """The student's prediction."""
    denoised: Tensor
    """The consistency function's value."""
    z: Tensor
    """Latents after the step: `denoised` with noise of the next timestep (at the last step of the same one)."""


def multistep_consistency_sampling(
    predict: Callable[[Tensor, Tensor], Tensor],
    schedule: NoiseSchedule,
    latents: Tensor,
    timesteps: Sequence[int],
    noises: Callable[[int], Tensor],
) -> Iterator[Step]:
    """Sample with a consistency model: denoise, then add fresh noise of the next timestep (Song et al., Algorithm 1).

    Args:
        predict: The student's prediction at (z, t (B,)), like `z`.
        schedule: Noise levels.
        latents: Initial noise (B, C, F, H, W).
        timesteps: Training timesteps, descending.
        noises: Noise of step i, like `latents`; not called in a one-step run.

    Yields:
        Each step.
    """
    z = latents
    for i, t in enumerate(timesteps):
        at = torch.full((z.shape[0],), t, device=z.device)
        output = predict(z, at)
        denoised = schedule.consistency(z, output, at)
        z = denoised
        if len(timesteps) > 1:
            after = torch.full_like(at, timesteps[min(i + 1, len(timesteps) - 1)])
            z = schedule.add_noise(denoised, noises(i).to(denoised), after)
        yield Step(t=t, output=output, denoised=denoised, z=z)


class HasSchedule(Protocol):
    """A teacher, of which a sampler reads the noise levels alone."""

    @property
    def schedule(self) -> NoiseSchedule:
        """Noise levels and prediction type."""


@torch.no_grad()
def sample(student: Any, teacher: HasSchedule, *args: Any, **options: Any) -> Tensor:
    """Sample with a student, one network call per step; arguments as in `sample_steps`.

    Returns:
        Clean latents, like `latents`, not clipped.
    """
    *_, last = sample_steps(student, teacher, *args, **options)
    return last.denoised


def sample_steps(
    student: Any,
    teacher: HasSchedule,
    cond: dict[str, Tensor],
    latents: Tensor,
    steps: int,
    omega: float | Tensor,
    lambdas: Sequence[float] | Tensor | None = None,
    fraction: float | Sequence[float] = 0.5,
    *,
    noises: Sequence[Tensor] | Tensor | torch.Generator | None = None,
    origin: int = 200,
) -> Iterator[Step]:
    """Sample with a student and yield every step; the last step's `denoised` is the result.

    Args:
        student: Called as student(z, t, cond, omega, lambdas).
        teacher: Its schedule is used.
        cond: Conditioning with first dimension B.
        latents: Initial noise (B, C, F, H, W).
        steps: Number of steps, 1 to `origin`.
        omega: Guidance strength, one number or (B,).
        lambdas: Energy inputs (E,) or (B, E), see `guidance.lambda_input`; None is zeros if the student has energies.
        fraction: Noisiest fraction of the timesteps in which lambdas apply, in [0, 1], one or one per energy.
        noises: Noise of each step (S, B, ...), or a generator; None uses torch's global one.
        origin: Points of the grid from which the timesteps are chosen.
    """
    schedule = teacher.schedule
    batch, device = latents.shape[0], latents.device
    timesteps = multistep_timesteps(steps, origin, len(schedule))
    omega = torch.as_tensor(omega, dtype=torch.float32, device=device).expand(batch)
    count = len(getattr(student, "energies", ()))
    fractions: Sequence[float] = ()
    if lambdas is None and count:
        lambdas = torch.zeros(count)
    if lambdas is not None:
        lambdas = torch.as_tensor(lambdas, dtype=torch.float32, device=device)
        lambdas = lambdas.expand(batch, -1)
        fractions = [fraction] * lambdas.shape[1] if isinstance(fraction, int | float) else list(fraction)

    def predict(z: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            return student(z, t, cond, omega, lambdas_at(int(t[0]), lambdas, fractions, len(schedule)))

    def noise(i: int) -> Tensor:
        if noises is None or isinstance(noises, torch.Generator):
            where = noises.device if noises is not None else device
            return torch.randn(latents.shape, generator=noises, device=where, dtype=latents.dtype).to(device)
        return noises[i]

    yield from multistep_consistency_sampling(predict, schedule, latents, timesteps, noise)
