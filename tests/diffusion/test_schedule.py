"""Noise levels, grids and conversions, against closed forms and against diffusers."""

from __future__ import annotations

import hashlib

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from guidedcd.diffusion.randomness import noise
from guidedcd.diffusion.sampler import multistep_consistency_sampling, multistep_timesteps
from guidedcd.diffusion.schedule import NoiseSchedule, expand, to_x0_eps
from guidedcd.errors import GuidedCDError

STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def test_scaled_linear_equals_diffusers():
    """The table is diffusers' float32 table, but for last bits, in which torch's linspace depends on the processor."""
    table = NoiseSchedule.scaled_linear().alphas_cumprod
    torch.testing.assert_close(table, DDIMScheduler(**STABLE).alphas_cumprod, rtol=1e-5, atol=0)


def test_scaled_linear_has_the_same_bits_on_every_processor():
    """The table is the one that torch makes with fused multiply-add, whatever this processor has."""
    table = NoiseSchedule.scaled_linear().alphas_cumprod
    assert hashlib.sha256(table.numpy().tobytes()).hexdigest()[:32] == "b0c6833c866f3aae5d58606971a42979"


def test_read_from_a_scheduler():
    """A scheduler's table and prediction type are taken over; one that is unknown is refused in one sentence."""
    read = NoiseSchedule.from_scheduler(DDIMScheduler(**STABLE, prediction_type="v_prediction"))

    assert read.prediction == "v"
    assert len(read) == 1000
    with pytest.raises(GuidedCDError, match="sample"):
        NoiseSchedule.from_scheduler(DDIMScheduler(**STABLE, prediction_type="sample"))


@pytest.mark.parametrize(("steps", "first", "last"), [(200, 4, 999), (50, 19, 999), (1000, 0, 999), (30, 32, 989)])
def test_the_grid_ends_at_multiples_of_the_stride(steps, first, last):
    """t_i = (i + 1) * (1000 // N) - 1, also where N does not divide 1000."""
    grid = NoiseSchedule.scaled_linear().grid(steps)

    assert (steps, first, last) == (len(grid), int(grid[0]), int(grid[-1]))


@given(steps=st.integers(2, 1000))
@settings(max_examples=30, deadline=None)
def test_previous_walks_the_grid(steps):
    """From any grid point the previous one is the grid point before it, and 0 before the first."""
    schedule = NoiseSchedule.scaled_linear()
    grid = schedule.grid(steps)

    assert torch.equal(grid[:-1], schedule.previous(grid[1:], steps))
    assert schedule.previous(grid[:1], steps) == 0


def test_grid_refuses_more_steps_than_timesteps():
    """A grid finer than the training timesteps is a user's mistake."""
    with pytest.raises(GuidedCDError, match="1 to 1000"):
        NoiseSchedule.scaled_linear().grid(1001)


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
@given(t=st.integers(0, 999), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_conversion_inverts_noising(prediction, t, seed):
    """The right output of any prediction type is read back as the x0 and eps that made the latents."""
    schedule = NoiseSchedule.flow() if prediction == "flow" else NoiseSchedule.scaled_linear(prediction=prediction)
    x0, eps = (noise(seed, draw, (1, 4, 2, 3, 3)).double() for draw in (0, 1))
    at = torch.tensor([t])
    z = schedule.add_noise(x0, eps, at)
    alpha, sigma = (expand(v, z) for v in schedule.alpha_sigma(at))
    output = {"eps": eps, "v": alpha * eps - sigma * x0, "flow": eps - x0}[prediction]
    found_x0, found_eps = schedule.to_x0_eps(z, output, at)

    torch.testing.assert_close(found_x0, x0, atol=2e-5, rtol=0)
    torch.testing.assert_close(found_eps, eps, atol=2e-5, rtol=0)


def test_flow_step_is_euler():
    """For flow models the common step equals z + (s' - s) v."""
    schedule, z, v = NoiseSchedule.flow(shift=3.0), noise(0, 0, (2, 4, 2, 3, 3)), noise(0, 1, (2, 4, 2, 3, 3))
    t, t_next = torch.tensor([900, 400]), torch.tensor([800, 300])
    ahead, behind = (expand(schedule.alpha_sigma(at)[1], z) for at in (t_next, t))
    actual = schedule.ddim_step(*schedule.to_x0_eps(z, v, t), t_next)

    torch.testing.assert_close(actual, z + (ahead - behind) * v, atol=1e-5, rtol=1e-5)


def test_flow_is_clean_at_zero():
    """At timestep 0 a flow model's consistency function is the identity, whatever the network predicts."""
    schedule, z = NoiseSchedule.flow(), noise(0, 0, (1, 4, 2, 3, 3))

    assert torch.equal(schedule.consistency(z, noise(0, 1, z.shape), torch.tensor([0])), z)


def test_boundary_is_the_identity_at_zero():
    """At timestep 0 a VP model's consistency function is the identity; from 4 on c_skip is at most 1.6e-4."""
    c_skip, c_out = NoiseSchedule.scaled_linear().boundary_conditions(torch.tensor([0, 4, 999]))

    assert (float(c_skip[0]), float(c_out[0])) == (1.0, 0.0)
    assert float(c_skip[1:].max()) <= 1.6e-4
    torch.testing.assert_close(c_skip + c_out**2, torch.ones(3))


@pytest.mark.parametrize("steps", [4, 8])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_step_equals_diffusers_ddim(steps, prediction):
    """Our grid and step are diffusers' DDIM with trailing spacing, eta 0, last level alphas_cumprod[0]."""
    reference = DDIMScheduler(
        **STABLE,
        prediction_type=prediction,
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
    )
    reference.set_timesteps(steps)
    schedule = NoiseSchedule.from_scheduler(reference)
    assert reference.timesteps.tolist() == schedule.grid(steps).flip(0).tolist()

    ours = expected = noise(1, 0, (2, 4, 3, 4, 4))
    for i, t in enumerate(reference.timesteps):
        output = noise(1, 1 + i, ours.shape)
        at = t.expand(2)
        expected = reference.step(output, t, expected).prev_sample
        ours = schedule.ddim_step(*schedule.to_x0_eps(ours, output, at), schedule.previous(at, steps))

        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("steps", [4, 8])
def test_multistep_equals_diffusers_lcm(steps):
    """With 4 and 8 steps and the same noise our few-step sampler is diffusers' LCMScheduler, timesteps and latents."""
    reference = LCMScheduler(**STABLE, clip_sample=False, set_alpha_to_one=False, original_inference_steps=200)
    reference.set_timesteps(steps)
    times = multistep_timesteps(steps)
    assert reference.timesteps.tolist() == times

    shape = (2, 4, 3, 4, 4)
    outputs, latents = [noise(2, i, shape) for i in range(steps)], noise(2, 99, shape)

    def drawn(i: int) -> torch.Generator:
        return torch.Generator().manual_seed(i)

    output = iter(outputs)
    steps_taken = multistep_consistency_sampling(
        lambda z, t: next(output),
        NoiseSchedule.scaled_linear(),
        latents,
        times,
        lambda i: torch.randn(shape, generator=drawn(i)),
    )
    for i, step in enumerate(steps_taken):
        diffusers_step = reference.step(outputs[i], reference.timesteps[i], latents, generator=drawn(i))
        latents = diffusers_step.prev_sample

        torch.testing.assert_close(step.denoised, diffusers_step.denoised, atol=1e-4, rtol=1e-4)
        if i + 1 < steps:  # after the last step diffusers returns the clean latents
            torch.testing.assert_close(step.z, latents, atol=1e-4, rtol=1e-4)


def test_sixteen_steps_are_the_released_ones():
    """16 steps of 200 are 999, 939, ..., 99, which is not diffusers' spacing."""
    assert [999 - 60 * i for i in range(16)] == multistep_timesteps(16)
    assert multistep_timesteps(4, 50) == [999, 759, 519, 279]
    with pytest.raises(GuidedCDError, match="51"):
        multistep_timesteps(51, 50)


def test_levels_in_float64_are_roots_of_the_float32_table():
    """In float64 the levels are exact roots of the table, so that alpha^2 + sigma^2 is 1 to 1e-15."""
    alpha, sigma = NoiseSchedule.scaled_linear().alpha_sigma(torch.arange(1000), torch.float64)

    assert torch.float64 == alpha.dtype
    assert float((alpha**2 + sigma**2 - 1).abs().max()) < 1e-15


PINNED = [-1.447067, -0.913421, -0.515561, 6.387978, 1034.263758]
"""Of seed 7, draw 3: the first three numbers, the sum and the sum of squares of a thousand."""


def test_noise_is_a_function_of_seed_and_draw():
    """The numbers are pinned: stores keep seeds and draws instead of noise."""
    actual = noise(7, 3, (1000,))

    assert torch.equal(actual, noise(7, 3, (1000,)))
    assert not torch.equal(actual, noise(7, 4, (1000,)))
    assert torch.equal(actual[:10], noise(7, 3, (2, 5)).flatten())
    assert [round(float(v), 6) for v in (*actual[:3], actual.double().sum(), actual.double().square().sum())] == PINNED


def test_unknown_prediction_is_refused():
    """Only eps, v and flow exist."""
    with pytest.raises(GuidedCDError, match="eps, v, flow"):
        NoiseSchedule(torch.ones(10), "x0")
    with pytest.raises(ValueError, match="eps, v, flow"):
        to_x0_eps(torch.zeros(1), torch.zeros(1), torch.ones(1), torch.ones(1), "x0")
