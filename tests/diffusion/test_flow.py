"""Noise levels, times and guided steps of flow models, against the schedulers of diffusers and closed forms."""

from __future__ import annotations

import numpy
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from guidedcd.diffusion.guidance import (
    Rule,
    TeacherStep,
    guidance_term,
    guided_share,
    guided_step,
    noise_factor,
    strength_from_relative,
)
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.errors import GuidedCDError


def unipc(shift: float, **options: object) -> UniPCMultistepScheduler:
    """The scheduler of published Wan folders."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, **options)


@given(shift=st.floats(0.3, 12), steps=st.sampled_from([1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100]))
@settings(max_examples=25, deadline=None)
def test_the_grid_is_the_schedulers(shift, steps):
    """A grid of S steps has the sigmas and times of the scheduler with S steps, for both kinds of scheduler."""
    own = unipc(shift)
    euler = FlowMatchEulerDiscreteScheduler(shift=shift)
    of_pipelines = {"sigmas": numpy.linspace(1, 1 / steps, steps).tolist()}
    for scheduler, arguments in ((own, {"num_inference_steps": steps}), (euler, of_pipelines)):
        schedule = NoiseSchedule.from_scheduler(scheduler)
        scheduler.set_timesteps(**arguments)
        grid = schedule.grid(steps).flip(0)
        torch.testing.assert_close(schedule.sigma[grid], scheduler.sigmas[:-1], rtol=1e-5, atol=1e-7)
        times = scheduler.timesteps.float()
        # UniPC cuts times to whole numbers, which a last bit may decide.
        torch.testing.assert_close(
            schedule.network_time(grid), times, rtol=1e-5, atol=0.0 if scheduler is euler else 1.0
        )
        assert schedule.previous(grid[-1:], steps) == 0 and scheduler.sigmas[-1] == 0 == schedule.sigma[0]


@given(shift=st.floats(0.5, 9), seed=st.integers(0, 9))
@settings(max_examples=15, deadline=None)
def test_every_euler_step_is_the_schedulers(shift, seed):
    """A whole descent by `guided_step` equals `FlowMatchEulerDiscreteScheduler.step` to 1e-6."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    scheduler.set_timesteps(sigmas=numpy.linspace(1, 0.1, 10).tolist())
    generator = torch.Generator().manual_seed(seed)
    z = other = torch.randn(2, 3, 4, generator=generator)
    for t, time in zip(schedule.grid(10).flip(0), scheduler.timesteps, strict=True):
        output = torch.randn(z.shape, generator=generator)
        step = TeacherStep(z, t.expand(2), output, output, torch.zeros(2))
        z = guided_step(schedule, step, schedule.previous(t.expand(2), 10))
        other = scheduler.step(output, time, other, return_dict=False)[0]
        torch.testing.assert_close(z, other, rtol=1e-6, atol=2e-6)


def test_flow_models_receive_times_and_others_timesteps():
    """Whole timesteps are looked up, floating-point numbers are times already, and other models receive timesteps."""
    schedule = NoiseSchedule.flow(1000, shift=3.0)
    t = torch.tensor([0, 250, 999])
    torch.testing.assert_close(schedule.network_time(t), 1000 * schedule.sigma[t])
    assert torch.equal(schedule.network_time(torch.tensor([731.5])), torch.tensor([731.5]))
    assert NoiseSchedule.scaled_linear().network_time(t) is t


def test_a_shift_by_resolution_is_taken():
    """With use_dynamic_shifting the shift is exp(mu), and a shift_terminal ends the levels there."""
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1)
    schedule = NoiseSchedule.from_scheduler(scheduler, mu=1.2)
    shift = numpy.exp(1.2)
    last = shift * 0.001 / (1 + (shift - 1) * 0.001)
    level = shift * 0.5 / (1 + (shift - 1) * 0.5)
    assert float(schedule.sigma[499]) == pytest.approx(1 - (1 - level) * 0.9 / (1 - last), rel=1e-5)
    assert float(schedule.sigma[1]) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(
    ("scheduler", "match"),
    [
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "use_dynamic_shifting"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas"),
        (UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=False), "use_flow_sigmas"),
        (FlowMatchHeunDiscreteScheduler(), "takes no sigmas"),
    ],
)
def test_schedulers_without_a_table_are_refused(scheduler, match):
    """Reversed levels, an unknown shift and a flow without its sigmas are refused in one sentence."""
    with pytest.raises(GuidedCDError, match=match):
        NoiseSchedule.from_scheduler(scheduler)


def test_lcm_scheduler_has_the_same_table():
    """`FlowMatchLCMScheduler` gives the table of Euler's scheduler with the same shift."""
    one = NoiseSchedule.from_scheduler(FlowMatchLCMScheduler(shift=4.0))
    assert torch.equal(one.sigma, NoiseSchedule.from_scheduler(FlowMatchEulerDiscreteScheduler(shift=4.0)).sigma)


@given(t=st.integers(1, 999), relative=st.floats(0.01, 2), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_noise_factor_and_relative_strength_of_flow(t, relative, seed):
    """The factors are sqrt(sigma) and sigma; a relative strength is the share, and its step does not depend on them."""
    schedule = NoiseSchedule.flow(1000, shift=3.0)
    z, output, score = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(seed)).double().unbind()
    at, sigma = torch.full((2,), t), schedule.sigma[t].double()
    factors = {"official": sigma.sqrt(), "sqrt-one-minus": sigma}
    step, norms = TeacherStep(z, at, output, output, torch.zeros(2)), torch.full((2,), relative).double()
    steps = []
    for name, factor in factors.items():
        torch.testing.assert_close(noise_factor(schedule, at, name, z).flatten(), factor.expand(2), rtol=1e-5, atol=0)
        rule = Rule("official", name)
        term = guidance_term(schedule, step, score, norms, True, rule)
        torch.testing.assert_close(guided_share(schedule, step, term, rule), norms, rtol=1e-6, atol=0)
        strength = strength_from_relative(schedule, step, score, norms, rule)
        _, eps = schedule.to_x0_eps(z, output, at)
        expected = norms * eps.norm(dim=1) / (factor * score.norm(dim=1))
        torch.testing.assert_close(strength, expected, rtol=1e-5, atol=0)
        steps.append(guided_step(schedule, step, schedule.previous(at, 50), [term], rule))
    torch.testing.assert_close(*steps, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["official", "eps"])
@pytest.mark.parametrize("factor", ["official", "sqrt-one-minus"])
def test_a_guided_flow_step_lowers_the_energy(kind, factor):
    """One guided step of a flow model ends where a quadratic energy of the latents is lower than without it."""
    schedule = NoiseSchedule.flow(1000, shift=3.0)
    z, output, goal = torch.randn(3, 2, 64, generator=torch.Generator().manual_seed(1)).double().unbind()
    at = torch.full((2,), 900)
    step = TeacherStep(z, at, output, output, torch.zeros(2))
    ends = []
    for relative in (0.0, 0.1):
        rule = Rule(kind, factor)
        term = guidance_term(schedule, step, z - goal, torch.full((2,), relative).double(), True, rule)
        end = guided_step(schedule, step, schedule.previous(at, 50), [term], rule)
        ends.append((end - goal).square().sum(1))
    assert (ends[1] < ends[0]).all()


def test_other_multistep_schedulers_have_their_own_levels():
    """`DPMSolverMultistepScheduler` with flow sigmas gives its own grid and times."""
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    scheduler.set_timesteps(10)
    grid = schedule.grid(10).flip(0)
    torch.testing.assert_close(schedule.sigma[grid], scheduler.sigmas[:-1], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(schedule.network_time(grid), scheduler.timesteps.float(), rtol=0, atol=1.0)
