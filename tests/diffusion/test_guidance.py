"""Where classifier-free guidance and energy gradients meet a prediction."""

from __future__ import annotations

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guidedcd.diffusion.guidance import (
    Rule,
    TeacherStep,
    guided_from,
    guided_prediction,
    guided_step,
    lambda_input,
    noise_factor,
    strength_from_relative,
    window,
)
from guidedcd.diffusion.guiders import combine
from guidedcd.diffusion.randomness import noise
from guidedcd.diffusion.schedule import NoiseSchedule, expand

SHAPE = (3, 4, 2, 3, 3)


@attrs.frozen
class Point:
    """Everything one guided step needs."""

    schedule: NoiseSchedule
    step: tuple
    score: torch.Tensor


def point(prediction: str = "eps", steps: int = 50, seed: int = 0) -> Point:
    """A random step in float64 at three grid points of the noisier half."""
    schedule = NoiseSchedule.flow() if prediction == "flow" else NoiseSchedule.scaled_linear(prediction=prediction)
    z, o_c, o_u, score = (noise(seed, draw, SHAPE).double() for draw in range(4))
    t = schedule.grid(steps)[torch.tensor([steps // 2, 3 * steps // 4, steps - 2])]
    omega = torch.tensor([5.0, 7.5, 15.0]).double()
    return Point(schedule, (schedule, TeacherStep(z, t, o_c, o_u, omega), schedule.previous(t, steps)), score)


def constant(value: float) -> torch.Tensor:
    """One strength for all samples."""
    return torch.full((3,), value, dtype=torch.float64)


def test_combine_is_the_papers_form():
    """c + w (c - u) is diffusers' u + g (c - u) with g = w + 1."""
    o_c, o_u, w = noise(0, 0, SHAPE), noise(0, 1, SHAPE), torch.tensor([0.0, 2.0, 7.5])

    torch.testing.assert_close(combine(o_c, o_u, w), o_u + expand(w + 1, o_c) * (o_c - o_u), atol=1e-5, rtol=1e-5)
    assert torch.equal(combine(o_c, o_u, w)[0], o_c[0])


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
@pytest.mark.parametrize("rule", ["official", "eps", "paper-literal"])
def test_zero_strength_is_no_guidance(prediction, rule):
    """A term of strength 0 changes nothing, even where its score is not a number."""
    p = point(prediction)
    bad = torch.full_like(p.score, float("nan"))

    assert torch.equal(guided_step(*p.step), guided_step(*p.step, [(bad, constant(0.0))], Rule(rule)))


def test_official_rule_moves_the_direction_term():
    """z' moves by -strength sqrt(1 - abar') sqrt(1 - sqrt(abar)) score, and the predicted x0 not at all."""
    p = point()
    schedule, step, t_next = p.step
    z, t = step.z, step.t
    moved = guided_step(*p.step, [(p.score, constant(500.0))]) - guided_step(*p.step)
    abar, abar_next = (schedule.alphas_cumprod[at].double() for at in (t, t_next))
    size = -500 * (1 - abar_next).sqrt() * (1 - abar.sqrt()).sqrt()

    torch.testing.assert_close(moved, expand(size, z) * p.score, rtol=1e-5, atol=1e-5)
    assert torch.equal(
        guided_prediction(*p.step[:-1])[0], guided_prediction(*p.step[:-1], [(p.score, constant(500.0))])[0]
    )


def test_eps_rule_is_a_shift_of_eps():
    """Equation 2: the step from eps + strength factor score, used for x0 and for the direction."""
    p = point()
    schedule, step, t_next = p.step
    z, o_c, o_u, omega, t = step.z, step.o_c, step.o_u, step.omega, step.t
    push = noise_factor(schedule, t, "sqrt-one-minus", z) * 3.0 * p.score
    expected = schedule.ddim_step(*schedule.to_x0_eps(z, combine(o_c, o_u, omega) + push, t), t_next)
    actual = guided_step(*p.step, [(p.score, constant(3.0))], Rule("eps", "sqrt-one-minus"))

    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


def test_literal_rule_adds_to_z():
    """Equation 8 as printed: z' + strength score."""
    p = point()
    moved = guided_step(*p.step, [(p.score, constant(0.01))], Rule("paper-literal")) - guided_step(*p.step)

    torch.testing.assert_close(moved, 0.01 * p.score)


def test_terms_of_several_energies_are_added():
    """Two energies push independently."""
    p = point()
    one, two = (p.score, constant(2.0)), (noise(9, 9, SHAPE).double(), constant(-1.0))
    base = guided_step(*p.step)
    apart = (guided_step(*p.step, [one]) - base) + (guided_step(*p.step, [two]) - base)

    torch.testing.assert_close(guided_step(*p.step, [one, two]) - base, apart)


@pytest.mark.parametrize("rule", ["official", "eps"])
@pytest.mark.parametrize("factor", ["official", "sqrt-one-minus"])
@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
@given(seed=st.integers(0, 200))
@settings(max_examples=15, deadline=None)
def test_a_small_guided_step_lowers_the_energy(rule, factor, prediction, seed):
    """The displacement that guidance adds, applied at z with a small strength, lowers any smooth energy there."""
    p = point(prediction, seed=seed)
    a, b = noise(seed, 10, SHAPE).double(), noise(seed, 11, SHAPE).double()

    def energy(z: torch.Tensor) -> torch.Tensor:
        return (torch.sin(a * z) + 0.1 * (z - b) ** 2).flatten(1).sum(1)

    z = p.step[1].z.clone().requires_grad_(True)
    before = energy(z)
    (score,) = torch.autograd.grad(before.sum(), z)
    moved = guided_step(*p.step, [(score, constant(1e-4))], Rule(rule, factor)) - guided_step(*p.step)

    assert (energy(z.detach() + moved) < before.detach()).all()


@given(seed=st.integers(0, 50))
@settings(max_examples=10, deadline=None)
def test_the_literal_rule_raises_the_energy(seed):
    """Equation 8 with a positive lambda ascends, which is why it is not the default."""
    p = point(seed=seed)
    moved = guided_step(*p.step, [(p.score, constant(1e-4))], Rule("paper-literal")) - guided_step(*p.step)

    assert float((moved * p.score).sum()) > 0


@pytest.mark.parametrize(("rule", "factor"), [("official", "official"), ("eps", "sqrt-one-minus")])
@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
def test_relative_strength_sets_the_norm(rule, factor, prediction):
    """With relative = 0.3 the guided term is 0.3 of the guided eps in norm, per sample, whatever the score's size."""
    p = point(prediction)
    score = p.score * torch.tensor([1e-6, 1.0, 1e6]).double().view(3, 1, 1, 1, 1)
    strength = strength_from_relative(*p.step[:-1], score, constant(0.3), Rule(rule, factor))
    _, eps = guided_prediction(*p.step[:-1])
    _, guided = guided_prediction(*p.step[:-1], [(score, strength)], Rule(rule, factor))
    share = (guided - eps).flatten(1).norm(dim=1) / eps.flatten(1).norm(dim=1)

    torch.testing.assert_close(share, constant(0.3))


def test_relative_strength_of_a_zero_score_is_zero():
    """Where there is no gradient, or the strength is 0, there is no guidance."""
    p = point()
    relative = torch.tensor([0.3, 0.0, 0.3])
    score = p.score * torch.tensor([0.0, 1.0, 1.0]).double().view(3, 1, 1, 1, 1)
    strength = strength_from_relative(*p.step[:-1], score, relative)

    assert (strength == 0).tolist() == [True, True, False]
    assert strength.isfinite().all()


def test_window_compares_like_the_released_code():
    """index >= (1 - p) N in float32: (25, .5) begins at 13, and (20, .7) at 6 although .3 * 20 > 6 in float64."""
    cases = {(25, 0.5): 13, (20, 0.7): 6, (200, 0.9): 20, (25, 0.9): 3, (50, 0.5): 25, (200, 0.0): 200, (8, 1.0): 0}

    assert cases == {case: guided_from(case[1], case[0]) for case in cases}
    assert window(torch.tensor([99, 100]), 200, 0.5).tolist() == [False, True]


def test_lambda_inputs_agree():
    """The student's input is the same for scale 500 and relative 0.3: 0.05."""
    assert pytest.approx(float(lambda_input(torch.tensor(500.0)))) == 0.05
    assert pytest.approx(float(lambda_input(torch.tensor(0.3), relative=True))) == 0.05


def test_unknown_names_are_refused():
    """A misspelt rule or factor is an error, not the default."""
    p = point()
    with pytest.raises(ValueError, match="paper-literal"):
        guided_step(*p.step, [(p.score, constant(1.0))], Rule("offical"))
    with pytest.raises(ValueError, match="sqrt-one-minus"):
        guided_step(*p.step, [(p.score, constant(1.0))], Rule("official", "none"))
