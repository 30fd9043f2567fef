"""The consistency loss of one step: pure functions of tensors and networks (Algorithm 2).

Legend: B batch, C channels, F frames, H/W latent size, E energies.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from guidedcd.diffusion.schedule import NoiseSchedule

Network = Callable[..., Tensor]
"""Called as network(z, t, cond, omega, lambdas); returns the prediction, like z."""


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
    """The consistency loss (Algorithm 2): the distance of f(z, t) to f(z', t'), the second without gradient.

    Args:
        student: The network in training.
        schedule: Noise levels; f = c_skip z + c_out x0.
        z: Noisy latents (B, C, F, H, W) at `t` (B,).
        t: Training timesteps (B,), int64.
        z_next: The teacher's guided step from `z`, like `z`, at `t_next`.
        t_next: The timesteps (B,) at which the step ends.
        cond: Conditioning with first dimension B.
        omega: Guidance strength (B,).
        lambdas: Energy inputs (B, E), the same for both sides, or None for a student without energies.
        target: Another network for the second side; None takes the student itself.
        loss: "huber" for mean(sqrt(d^2 + c^2) - c), "l2" for mean(d^2), in float32 at least.
        huber_c: The constant c of the pseudo-Huber loss, above 0.

    Returns:
        The loss, a scalar, and f(z, t), like `z`.

    Raises:
        ValueError: The loss is unknown.
    """
    f, goal = sides(student, schedule, z, t, z_next, t_next, cond, omega, lambdas, target=target)
    return gap(f, goal, loss, huber_c), f


def sides(
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
) -> tuple[Tensor, Tensor]:
    """Both sides of the consistency loss, f(z, t) and without gradient f(z', t'), like `z`; arguments of `distance`."""
    f = schedule.consistency(z, student(z, t, cond, omega, lambdas), t)
    with torch.no_grad():
        goal = schedule.consistency(z_next, (target or student)(z_next, t_next, cond, omega, lambdas), t_next)
    return f, goal


def gap(one: Tensor, other: Tensor, loss: str, huber_c: float) -> Tensor:
    """The mean distance of two tensors of one shape, a scalar, at least float32.

    Args:
        one: Any shape.
        other: Like `one`.
        loss: "huber" or "l2", as in `distance`.
        huber_c: The constant c.

    Raises:
        ValueError: The loss is unknown.
    """
    return _gaps(one, other, loss, huber_c).mean()


def sample_gaps(one: Tensor, other: Tensor, loss: str, huber_c: float) -> Tensor:
    """The mean distance of each sample (B,), in place of all samples together; see `gap`."""
    return _gaps(one, other, loss, huber_c).flatten(1).mean(dim=1)


def _gaps(one: Tensor, other: Tensor, loss: str, huber_c: float) -> Tensor:
    """The distance of each pair of elements."""
    dtype = torch.promote_types(one.dtype, torch.float32)
    squares = (one.to(dtype) - other.to(dtype)).square()
    if loss == "huber":
        return (squares + huber_c**2).sqrt() - huber_c
    if loss == "l2":
        return squares
    raise ValueError(f"loss must be 'huber' or 'l2': {loss!r}")
