"""Energies of the output: gradients without a pass through the network, the same as through a constant output."""

from __future__ import annotations

import pytest
import torch

from guidedcd.diffusion.guidance import TeacherStep
from guidedcd.diffusion.guiders import combine
from guidedcd.diffusion.randomness import noise
from guidedcd.diffusion.schedule import NoiseSchedule, to_x0_eps
from guidedcd.diffusion.seen import Seen, seen_of_latents
from guidedcd.energies.gradients import EnergyTerm
from guidedcd.energies.output import output_gradients, seen_of_step
from guidedcd.energies.traits import check_traits, needs_video
from guidedcd.errors import GuidedCDError
from guidedcd.plugins.configs import EnergyConfig, OutputEnergyConfig

SCHEDULES = [NoiseSchedule.scaled_linear(), NoiseSchedule.scaled_linear(prediction="v"), NoiseSchedule.flow()]


class Both:
    """A function of both predictions and of a reference."""

    through = "output"

    def __call__(self, seen, reference):
        return (seen.guided.sin() * seen.x0 - reference.x0).square().flatten(1).mean(1)


def step(seed: int = 0) -> TeacherStep:
    """A step of two samples in float64."""
    z, o_c, o_u = (noise(seed, draw, (2, 3, 4, 2, 2)).double() for draw in range(3))
    return TeacherStep(z, torch.tensor([300, 800]), o_c, o_u, torch.tensor([2.0, 7.0]))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.prediction)
def test_the_gradient_is_that_with_a_constant_output(schedule):
    """It equals autograd from the noisy latents, to 1e-12 in float64, whatever the network predicts."""
    now, energy = step(), Both()
    ref = seen_of_latents(noise(1, 0, now.z.shape).double(), now.t)
    (gradient,) = output_gradients(seen_of_step(schedule, now), [EnergyTerm(name="x", energy=energy, reference=ref)])
    leaf = now.z.clone().requires_grad_(True)
    alpha, sigma = schedule.alpha_sigma(now.t)
    x0, guided = (
        to_x0_eps(leaf, output, alpha, sigma, schedule.prediction)[0]
        for output in (now.o_c, combine(now.o_c, now.o_u, now.omega))
    )
    (guided.sin() * x0 - ref.x0).square().flatten(1).mean(1).sum().backward()

    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-12, atol=1e-15)


def test_a_reference_is_not_guided():
    """The prediction at the same noise level is that with the caption, and known latents are themselves."""
    now, schedule = step(), SCHEDULES[1]
    own = seen_of_step(schedule, now, guided=False)
    latents = seen_of_latents(now.z, now.t)

    assert torch.equal(own.guided, own.x0)
    assert not torch.allclose(seen_of_step(schedule, now).guided, own.x0)
    assert torch.equal(latents.x0, now.z) and torch.equal(latents.guided, now.z)
    assert torch.equal(seen_of_step(schedule, now).rows(1, 2).guided, seen_of_step(schedule, now).guided[1:])


def test_an_energy_must_read_the_prediction():
    """One that reads the noisy latents alone has no gradient, which the error states."""
    now = step()
    term = EnergyTerm(name="mine", energy=lambda seen, _: seen.z.flatten(1).mean(1), reference=None)
    with pytest.raises(GuidedCDError, match="energy 'mine' does not depend on its first argument"):
        output_gradients(seen_of_step(SCHEDULES[0], now), [term])


def test_an_energy_must_not_change_its_reference():
    """A change in place of the reference's clean latents, which other energies read, is an error."""

    def rude(seen, reference):
        reference.x0.mul_(2)
        return (seen.x0 - reference.x0).flatten(1).mean(1)

    now, schedule = step(), SCHEDULES[0]
    own = seen_of_step(schedule, now, guided=False)
    assert own.x0 is not None
    with pytest.raises(GuidedCDError, match="changed a tensor of its arguments in place"):
        output_gradients(seen_of_step(schedule, now), [EnergyTerm(name="rude", energy=rude, reference=own)])


def test_guided_latents_exist_for_energies_of_the_output_only():
    """In a pass through the network alone, `guided` is an error that names the attribute to set."""
    now = step()
    one = torch.ones(2)
    seen = Seen(z=now.z, t=now.t, alpha=one, sigma=0 * one, output=now.o_c, prediction="eps")
    with pytest.raises(GuidedCDError, match='set `through = "output"`'):
        _ = seen.guided


@pytest.mark.parametrize(
    ("attributes", "config", "words"),
    [
        ({"through": "ouput"}, EnergyConfig(), "must be 'network' or 'output' \\(got 'ouput'\\)"),
        ({"through": "output", "needs": ("x",)}, OutputEnergyConfig(), "the network records nothing"),
        ({}, OutputEnergyConfig(), "does not state `through = 'output'`"),
        ({}, EnergyConfig(reference="prediction"), "is for energies of the output"),
    ],
)
def test_attributes_and_options_must_agree(attributes, config, words):
    """A misspelt `through`, needs without a network, and options or references of the other kind are errors."""
    with pytest.raises(GuidedCDError, match=f"energy 'x': .*{words}"):
        check_traits(type("Energy", (), attributes)(), config, "energy 'x'")


def test_which_energies_need_a_video():
    """An energy of the output compares with its own prediction, unless another reference is chosen."""
    free = type("Free", (), {"reference_free": True})()
    assert not needs_video(Both(), OutputEnergyConfig()) and needs_video(Both(), OutputEnergyConfig(reference="clean"))
    assert needs_video(object(), EnergyConfig()) and not needs_video(free, EnergyConfig())


def test_a_gradient_that_is_not_finite_names_energy_and_sample():
    """With `check`, the error names the energy and the sample."""
    now = step()
    broken = EnergyTerm(name="root", energy=lambda seen, _: (seen.x0 * 0).sqrt().flatten(1).sum(1), reference=None)
    with pytest.raises(GuidedCDError, match="energy 'root' gave a gradient that is not finite for 'a'"):
        output_gradients(seen_of_step(SCHEDULES[0], now, ["a", "b"]), [broken])
    with torch.no_grad():
        (gradient,) = output_gradients(seen_of_step(SCHEDULES[0], now), [broken], check=False)
    assert not gradient.isfinite().all()
