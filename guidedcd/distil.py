"""The consistency loss of one step: a pure function of tensors and networks.

Legend: B batch, C channels, F frames, H/W latent size, E energies.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from guidedcd.schedule import NoiseSchedule


def consistency(
    student: Callable[..., Tensor],
    schedule: NoiseSchedule,
    z: Tensor,
    t: Tensor,
    z_next: Tensor,
    t_next: Tensor,
    cond: dict[str, Tensor],
    omega: Tensor,
    lambdas: Tensor | None = None,
    *,
    target: Callable[..., Tensor] | None = None,
    loss: str = "huber",
    huber_c: float = 0.001,
) -> tuple[Tensor, Tensor]:
    """Distance between f(z, t) and f(z', t'), the second without gradient (Eq. 9; Algorithm 2).

    Args:
        student: Called as student(z, t, cond, omega, lambdas), says what the network says.
        schedule: Noise levels; f = c_skip z + c_out x0.
        z: Noisy latents (B, C, F, H, W) at `t` (B,).
        z_next: The teacher's guided step from `z`, like `z`, at `t_next` (B,).
        cond: Conditioning with first dimension B.
        omega: Guidance strength (B,).
        lambdas: Energy inputs (B, E), the same for both sides, or None for a student without energies.
        target: Another network for the second side; None takes the student itself.
        loss: "huber" for mean(sqrt(d^2 + c^2) - c), "l2" for mean(d^2), in float32 at least.

    Returns:
        (loss scalar, f(z, t) like `z`).
    """
    f = schedule.consistency(z, student(z, t, cond, omega, lambdas), t)
    with torch.no_grad():
        wanted = schedule.consistency(z_next, (target or student)(z_next, t_next, cond, omega, lambdas), t_next)
    dtype = torch.promote_types(f.dtype, torch.float32)
    squares = (f.to(dtype) - wanted.to(dtype)).square()
    if loss == "huber":
        return ((squares + huber_c**2).sqrt() - huber_c).mean(), f
    if loss == "l2":
        return squares.mean(), f
    raise ValueError(f"loss must be 'huber' or 'l2': {loss!r}")
