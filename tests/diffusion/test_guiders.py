"""Guiders beside those of diffusers, called directly."""

from __future__ import annotations

import warnings

import pytest
import torch
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeZeroStarGuidance
from diffusers.utils import logging
from hypothesis import given, settings
from hypothesis import strategies as st

from guidedcd.diffusion.guidance import TeacherStep, guided_step
from guidedcd.diffusion.guiders import PLAIN, Guider, combine
from guidedcd.diffusion.randomness import noise
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.errors import GuidedCDError

SHAPE = (3, 4, 2, 3, 3)
OMEGA = torch.tensor([0.0, 1.5, 7.5])
floats = st.floats(0, 2, width=32)


def outputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A prediction with the caption, and one without."""
    return noise(seed, 0, SHAPE), noise(seed, 1, SHAPE)


@given(st.integers(0, 9), floats, floats)
@settings(deadline=None)
def test_apg_is_that_of_diffusers(seed, eta, rescale):
    """Every sample of a batch is what `AdaptiveProjectedGuidance` gives for its scale alone."""
    o_c, o_u = outputs(seed)
    guided = Guider("apg", eta, rescale)(o_c, o_u, OMEGA)

    for row, omega in enumerate(OMEGA.tolist()):
        guider = AdaptiveProjectedGuidance(
            guidance_scale=omega, eta=eta, adaptive_projected_guidance_rescale=rescale, use_original_formulation=True
        )
        guider.set_state(0, 1, None)
        assert torch.equal(guided[row], guider.forward(o_c[row : row + 1], o_u[row : row + 1])[0][0])


@given(st.integers(0, 9))
@settings(deadline=None)
def test_cfg_zero_is_that_of_diffusers(seed):
    """The published formulation with guidance_scale = omega + 1 gives the same prediction."""
    o_c, o_u = outputs(seed)
    guided = Guider("cfg-zero")(o_c, o_u, OMEGA)

    for row, omega in enumerate(OMEGA.tolist()):
        guider = ClassifierFreeZeroStarGuidance(guidance_scale=omega + 1, zero_init_steps=0)
        guider.set_state(0, 1, None)
        expected = guider.forward(o_c[row : row + 1], o_u[row : row + 1])[0][0]
        torch.testing.assert_close(guided[row], expected, atol=1e-5, rtol=1e-5)


def test_apg_and_cfg_zero_follow_their_formulas():
    """Without eta the update is orthogonal to o_c, with eta 1 apg is plain, and cfg-zero ignores the size of o_u."""
    o_c, o_u = (output.double() for output in outputs())
    omega = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    update = (Guider("apg")(o_c, o_u, omega) - o_c).flatten(1)
    assert ((update * o_c.flatten(1)).sum(1).abs() < 1e-9).all() and (update.norm(dim=1) > 1).all()
    limited = (Guider("apg", 1.0, 0.25)(o_c, o_u, omega) - o_c).flatten(1).norm(dim=1)
    torch.testing.assert_close(limited, 0.25 * omega)
    torch.testing.assert_close(Guider("apg", 1.0)(o_c, o_u, omega), combine(o_c, o_u, omega))
    zero = Guider("cfg-zero")
    torch.testing.assert_close(zero(o_c, 5 * o_u, omega), zero(o_c, o_u, omega), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["plain", "apg", "cfg-zero"])
def test_without_guidance_every_guider_is_the_prediction(name):
    """omega 0 is the output with the caption, and a plan gets shapes on the meta device."""
    o_c, o_u = outputs()

    assert torch.equal(Guider(name)(o_c, o_u, OMEGA)[0], o_c[0])
    assert Guider(name)(o_c.to("meta"), o_u.to("meta"), OMEGA.to("meta")).shape == SHAPE
    assert Guider(name)(o_c.half(), o_u.half(), OMEGA).dtype == torch.float16


def test_a_solver_step_uses_its_guider():
    """`plain` is the default and changes no number; the step of another guider is DDIM on its prediction."""
    schedule = NoiseSchedule.scaled_linear()
    z, t, (o_c, o_u) = noise(0, 2, SHAPE), torch.tensor([979, 499, 19]), outputs()
    t_next = t - 19
    plain, apg = (TeacherStep(z, t, o_c, o_u, OMEGA, guider) for guider in (PLAIN, Guider("apg")))

    assert torch.equal(plain.output, combine(o_c, o_u, OMEGA))
    assert torch.equal(
        guided_step(schedule, TeacherStep(z, t, o_c, o_u, OMEGA), t_next), guided_step(schedule, plain, t_next)
    )
    expected = schedule.ddim_step(*schedule.to_x0_eps(z, Guider("apg")(o_c, o_u, OMEGA), t), t_next)
    assert torch.equal(guided_step(schedule, apg, t_next), expected)


def test_a_guider_is_quiet_and_its_name_is_checked(capfd):
    """diffusers warns that its guiders are experimental; a run does not repeat this at every step."""
    verbosity = logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Guider("apg", 0.123)(*outputs(), OMEGA)

    assert capfd.readouterr().err == ""
    assert logging.get_verbosity() == verbosity
    with pytest.raises(GuidedCDError, match="no guider named 'apq'. Use plain, apg or cfg-zero."):
        Guider("apq")(*outputs(), OMEGA)
