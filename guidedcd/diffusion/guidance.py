"""Guided solver steps: classifier-free guidance and energy gradients applied to a prediction (Algorithm 1).

Legend: B batch; a term is (score like z, strength (B,)), where score is the gradient of an energy with respect to z.

With s = strength and k = the noise factor at t, one solver step from t to t' is, for every prediction type,

    official       z' = alpha' x0 + sigma' (eps - s k score)            the gradient enters the direction term only
    eps            z' = alpha' x0(eps*) + sigma' eps*, eps* = eps + s k score        Eq. 2: both terms
    paper-literal  z' = alpha' x0 + sigma' eps + s score                Eq. 8 as printed; this RAISES the energy

(x0, eps) being the guided prediction. `official` and `eps` lower the energy at z.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import attrs
import numpy
import torch
from torch import Tensor

from guidedcd.diffusion.guiders import PLAIN, Guider
from guidedcd.diffusion.schedule import NoiseSchedule, expand

Term = tuple[Tensor, Tensor]
"""(score like z, strength (B,))."""


@attrs.frozen(eq=False)
class TeacherStep:
    """The start of a guided step of the teacher, and the network's two predictions there."""

    z: Tensor
    """Noisy latents at `t` (B, C, F, H, W)."""
    t: Tensor
    """Training timesteps (B,)."""
    o_c: Tensor
    """The network's output with the caption, like `z`."""
    o_u: Tensor
    """The network's output without the caption, like `z`."""
    omega: Tensor
    """Guidance strength (B,), diffusers' guidance_scale - 1."""
    guider: Guider = PLAIN
    """How both outputs become one."""

    @cached_property
    def output(self) -> Tensor:
        """The prediction under classifier-free guidance, like `z`."""
        return self.guider(self.o_c, self.o_u, self.omega)


@attrs.frozen
class Rule:
    """How the gradient of an energy enters a step; the module's docstring has the formulas."""

    kind: str = "official"
    """One of "official", "eps" and "paper-literal"."""
    noise_factor: str = "official"
    """Either "official" for sqrt(1 - sqrt(abar)), or "sqrt-one-minus" for sqrt(1 - abar)."""


OFFICIAL = Rule()
"""As in the released training code."""

SMALLEST_ALPHA = 1e-3
"""The smallest signal level at which eps determines x0; only zero-terminal-SNR schedules go below."""


def window(index: Tensor, steps: int, fraction: float) -> Tensor:
    """Whether the step from each grid index is guided: index >= (1 - fraction) * steps.

    The comparison is in float32, as in the released training code.

    Args:
        index: Grid indices (B,) from which the steps start, 0 the cleanest.
        steps: Number of grid points.
        fraction: The noisiest fraction of the grid that is guided, in [0, 1].

    Returns:
        Bool (B,).
    """
    threshold = torch.tensor((1 - fraction) * steps, dtype=torch.float32, device=index.device)
    return index.to(torch.float32) >= threshold


def guided_from(fraction: float, steps: int) -> int:
    """The smallest guided index of a grid of `steps` points; `steps` if no step is guided."""
    return int((~window(torch.arange(steps), steps, fraction)).sum())


def draw_index(position: Any, steps: int, noise_range: tuple[float, float]) -> Any:
    """The solver indices of positions in [0, `steps`), a number or an array, after scaling them into a noise range.

    Args:
        position: Where a draw lies on the grid, in [0, `steps`).
        steps: Number of grid points.
        noise_range: The part of the grid that is used, as two fractions of it, ascending, in [0, 1].

    Returns:
        Integers in [0, `steps` - 1], shaped like `position`.
    """
    low, high = noise_range
    return numpy.minimum((low * steps + (high - low) * position).astype(int), steps - 1)


def lambda_input(strength: Tensor, relative: bool = False) -> Tensor:
    """A student's energy input: scale / 1e4, or relative / 6, so that 500 and 0.3 both become 0.05; like `strength`."""
    return strength / 6 if relative else strength / 1e4


def noise_factor(schedule: NoiseSchedule, t: Tensor, name: str, like: Tensor) -> Tensor:
    """The factor k at `t` (B,), shaped (B, 1, ...), in the dtype of `like`.

    It is sqrt(1 - sqrt(abar)) for "official" and sqrt(1 - abar) for "sqrt-one-minus", that is sqrt(1 - alpha) and
    sigma; of flow models sqrt(sigma) and sigma.

    Raises:
        ValueError: The name is unknown.
    """
    alpha, sigma = schedule.alpha_sigma(t)
    if name == "official":
        return (1 - expand(alpha, like)).sqrt()
    if name == "sqrt-one-minus":
        return expand(sigma, like)
    raise ValueError(f"noise_factor must be 'official' or 'sqrt-one-minus': {name!r}")


def guided_prediction(
    schedule: NoiseSchedule, step: TeacherStep, terms: Sequence[Term] = (), rule: Rule = OFFICIAL
) -> tuple[Tensor, Tensor]:
    """The guided (x0, eps), each like `z`, that a solver step combines; "paper-literal" changes neither.

    Arguments as in `guided_step`.
    """
    z, t = step.z, step.t
    x0, eps = schedule.to_x0_eps(z, step.output, t)
    if not terms or rule.kind == "paper-literal":
        return x0, eps
    push = noise_factor(schedule, t, rule.noise_factor, z) * _push(z, terms)
    if rule.kind == "official":
        return x0, eps - push
    if rule.kind == "eps":
        alpha, sigma = (expand(v, z) for v in schedule.alpha_sigma(t))
        return x0 - sigma / alpha.clamp(min=SMALLEST_ALPHA) * push, eps + push
    raise ValueError(f"rule must be 'official', 'eps' or 'paper-literal': {rule.kind!r}")


def guided_step(
    schedule: NoiseSchedule,
    step: TeacherStep,
    t_next: Tensor,
    terms: Sequence[Term] = (),
    rule: Rule = OFFICIAL,
) -> Tensor:
    """One step of the teacher's guided ODE, which gives the target of distillation (Algorithm 1).

    Args:
        schedule: Noise levels.
        step: The start of the step, with the teacher's predictions.
        t_next: The timesteps (B,) at which the step ends.
        terms: Gradients of energies with their strengths; gradients of strength 0 are ignored.
        rule: How the gradients enter.

    Returns:
        Latents at `t_next`, like `z`.

    Raises:
        ValueError: The rule or its noise factor is unknown.
    """
    z_next = schedule.ddim_step(*guided_prediction(schedule, step, terms, rule), t_next)
    return z_next + _push(step.z, terms) if terms and rule.kind == "paper-literal" else z_next


def guidance_term(
    schedule: NoiseSchedule, step: TeacherStep, score: Tensor, strength: Tensor, relative: bool, rule: Rule = OFFICIAL
) -> Term:
    """A term of `guided_step` from an energy's gradient and its scale (B,) or relative strength (B,)."""
    return score, strength_from_relative(schedule, step, score, strength, rule) if relative else strength


def _push(z: Tensor, terms: Sequence[Term]) -> Tensor:
    # `where` rather than a product, because a masked score may contain anything, infinities included.
    pushes = [torch.where(expand(s, z) != 0, expand(s, z) * score.to(z.dtype), 0.0) for score, s in terms]
    return cast(Tensor, sum(pushes))  # 0 only without terms, which no caller passes


def strength_from_relative(
    schedule: NoiseSchedule, step: TeacherStep, score: Tensor, relative: Tensor, rule: Rule = OFFICIAL
) -> Tensor:
    """The strength (B,) for which the guided term's norm is `relative` (B,) times the norm of the guided eps.

    The guided term is what the rule adds to eps (to z under "paper-literal"), noise factor included. A score of zero
    gets strength 0. Arguments as in `guided_step`; `score` like `z`.
    """
    z = step.z
    _, eps = schedule.to_x0_eps(z, step.output, step.t)
    target = relative.to(z.device, z.dtype) * eps.flatten(1).norm(dim=1)
    unit = score.to(z.dtype).flatten(1).norm(dim=1)
    if rule.kind != "paper-literal":
        unit = unit * noise_factor(schedule, step.t, rule.noise_factor, z).flatten()
    return torch.where((unit > 0) & (target > 0), target / unit.clamp(min=torch.finfo(z.dtype).tiny), 0.0)


def guided_share(schedule: NoiseSchedule, step: TeacherStep, term: Term, rule: Rule = OFFICIAL) -> Tensor:
    """The norm of one guided term relative to the norm of the guided eps (B,), which `relative` sets.

    Arguments as in `guided_step`.
    """
    z = step.z
    _, eps = schedule.to_x0_eps(z, step.output, step.t)
    pushed = _push(z, [term]).flatten(1).norm(dim=1)
    if rule.kind != "paper-literal":
        pushed = pushed * noise_factor(schedule, step.t, rule.noise_factor, z).flatten()
    return pushed / eps.flatten(1).norm(dim=1).clamp(min=torch.finfo(z.dtype).tiny)


def moments(schedule: NoiseSchedule, step: TeacherStep) -> Tensor:
    """Numbers that give the share of an energy's guided term in a prediction, for every omega and rule.

    Args:
        schedule: Noise levels.
        step: The start of the step; its omega is not used.

    Returns:
        (B, 5) float32: means over the latents of e^2, e d and d^2, where e is the eps of the prediction with the
        caption and d its difference from the one without, so that the mean square under guidance is
        e^2 + 2 omega e d + omega^2 d^2; then the noise factors "official" and "sqrt-one-minus".
    """
    eps = schedule.to_x0_eps(step.z, step.o_c, step.t)[1].flatten(1)
    change = eps - schedule.to_x0_eps(step.z, step.o_u, step.t)[1].flatten(1)
    products = [(one * other).mean(1) for one, other in ((eps, eps), (eps, change), (change, change))]
    factors = [noise_factor(schedule, step.t, name, eps).flatten() for name in ("official", "sqrt-one-minus")]
    return torch.stack([*products, *factors], dim=1).float()
