"""The one place where classifier-free guidance and energy gradients meet a prediction.

Legend: B batch; a term is (score like z, strength (B,)), where score is the gradient of an energy with respect to z.

With s = strength and k = the noise factor at t, one solver step from t to t' is, for every prediction type,

    official       z' = alpha' x0 + sigma' (eps - s k score)            the gradient enters the direction term only
    eps            z' = alpha' x0(eps*) + sigma' eps*, eps* = eps + s k score        Eq. 2: both terms
    paper-literal  z' = alpha' x0 + sigma' eps + s score                Eq. 8 as printed; this RAISES the energy

(x0, eps) being the guided prediction. `official` and `eps` lower the energy at z.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from guidedcd.diffusion.schedule import NoiseSchedule, expand

Term = tuple[Tensor, Tensor]
"""(score like z, strength (B,))."""

SMALLEST_ALPHA = 1e-3
"""Below this signal level x0 is not determined by eps; only a zero-terminal-SNR schedule goes there."""


def combine(o_c: Tensor, o_u: Tensor, omega: Tensor) -> Tensor:
    """Classifier-free guidance o_c + omega (o_c - o_u), like `o_c`; `omega` (B,), diffusers' guidance_scale - 1."""
    return o_c + expand(omega, o_c) * (o_c - o_u)


def window(index: Tensor, steps: int, fraction: float) -> Tensor:
    """Whether a step from grid index (B,) is guided: index >= (1 - fraction) * steps, bool (B,).

    The index is the step's source; the comparison is in float32, as in the released training code.
    """
    threshold = torch.tensor((1 - fraction) * steps, dtype=torch.float32, device=index.device)
    return index.to(torch.float32) >= threshold


def guided_from(fraction: float, steps: int) -> int:
    """The smallest guided index of a grid of `steps`; `steps` when no step is guided."""
    return int((~window(torch.arange(steps), steps, fraction)).sum())


def draw_index(place: Any, steps: int, part: tuple[float, float]) -> Any:
    """Solver indices of evenly spread places in [0, `steps`), numbers or an array, squeezed into `part` of the grid."""
    low, high = part
    return numpy.minimum((low * steps + (high - low) * place).astype(int), steps - 1)


def lambda_input(strength: Tensor, relative: bool = False) -> Tensor:
    """The number a student is told: scale / 1e4, or relative / 6, so that 500 and 0.3 both become 0.05."""
    return strength / 6 if relative else strength / 1e4


def noise_factor(schedule: NoiseSchedule, t: Tensor, name: str, like: Tensor) -> Tensor:
    """The factor k (B, 1, ...) in `like`'s dtype: "official" sqrt(1 - sqrt(abar)), "sqrt-one-minus" sqrt(1 - abar)."""
    alpha, sigma = schedule.alpha_sigma(t)
    if name == "official":
        return (1 - expand(alpha, like)).sqrt()
    if name == "sqrt-one-minus":
        return expand(sigma, like)
    raise ValueError(f"noise_factor must be 'official' or 'sqrt-one-minus': {name!r}")


def guided_prediction(
    schedule: NoiseSchedule,
    z: Tensor,
    o_c: Tensor,
    o_u: Tensor,
    omega: Tensor,
    t: Tensor,
    terms: Sequence[Term] = (),
    rule: str = "official",
    factor: str = "official",
) -> tuple[Tensor, Tensor]:
    """The guided (x0, eps), each like `z`, that a solver step combines; "paper-literal" leaves both alone.

    Arguments as in `guided_step`.
    """
    x0, eps = schedule.to_x0_eps(z, combine(o_c, o_u, omega), t)
    if not terms or rule == "paper-literal":
        return x0, eps
    push = noise_factor(schedule, t, factor, z) * _push(z, terms)
    if rule == "official":
        return x0, eps - push
    if rule == "eps":
        alpha, sigma = (expand(v, z) for v in schedule.alpha_sigma(t))
        return x0 - sigma / alpha.clamp(min=SMALLEST_ALPHA) * push, eps + push
    raise ValueError(f"rule must be 'official', 'eps' or 'paper-literal': {rule!r}")


def guided_step(
    schedule: NoiseSchedule,
    z: Tensor,
    o_c: Tensor,
    o_u: Tensor,
    omega: Tensor,
    t: Tensor,
    t_next: Tensor,
    terms: Sequence[Term] = (),
    rule: str = "official",
    factor: str = "official",
) -> Tensor:
    """One step of the teacher's guided ODE, the target side of distillation (Algorithm 1).

    Args:
        schedule: Noise levels.
        z: Latents at `t` (B, C, F, H, W).
        o_c: The network's output with the caption, like `z`.
        o_u: The network's output without, like `z`.
        omega: Guidance strength (B,).
        t: Where `z` is (B,).
        t_next: Where to go (B,).
        terms: Scores with their strengths; a strength of 0 switches a term off, whatever its score holds.
        rule: "official", "eps" or "paper-literal", see the module.
        factor: "official" or "sqrt-one-minus".

    Returns:
        Latents at `t_next`, like `z`.
    """
    z_next = schedule.step(*guided_prediction(schedule, z, o_c, o_u, omega, t, terms, rule, factor), t_next)
    return z_next + _push(z, terms) if terms and rule == "paper-literal" else z_next


def _push(z: Tensor, terms: Sequence[Term]) -> Tensor:
    # `where` rather than a product: a masked score may hold anything, infinities included.
    return sum(torch.where(expand(s, z) != 0, expand(s, z) * score.to(z.dtype), 0.0) for score, s in terms)


def strength_from_relative(
    schedule: NoiseSchedule,
    z: Tensor,
    o_c: Tensor,
    o_u: Tensor,
    omega: Tensor,
    t: Tensor,
    score: Tensor,
    relative: Tensor,
    rule: str = "official",
    factor: str = "official",
) -> Tensor:
    """The strength (B,) for which the guided term's norm is `relative` (B,) times the norm of the guided eps.

    The guided term is what the rule adds to eps (to z under "paper-literal"), noise factor included. A score of zero
    gets strength 0. Arguments as in `guided_step`; `score` like `z`.
    """
    _, eps = schedule.to_x0_eps(z, combine(o_c, o_u, omega), t)
    wanted = relative.to(z.device, z.dtype) * eps.flatten(1).norm(dim=1)
    unit = score.to(z.dtype).flatten(1).norm(dim=1)
    if rule != "paper-literal":
        unit = unit * noise_factor(schedule, t, factor, z).flatten()
    return torch.where((unit > 0) & (wanted > 0), wanted / unit.clamp(min=torch.finfo(z.dtype).tiny), 0.0)
