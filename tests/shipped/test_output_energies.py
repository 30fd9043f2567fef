"""Energies of the output: `x0-motion`, `dynamics` and `saturation`."""

from __future__ import annotations

import attrs
import pytest
import torch
from guidedcd_output_energies import DynamicsConfig, SaturationConfig, X0MotionConfig
from guidedcd_output_energies.energies import Dynamics, Saturation, X0Motion, differences
from hypothesis import given, settings
from hypothesis import strategies as st

from guidedcd.diffusion.guidance import TeacherStep, guided_step
from guidedcd.diffusion.randomness import noise
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.diffusion.seen import seen_of_latents
from guidedcd.energies.gradients import EnergyTerm
from guidedcd.energies.output import output_gradients, seen_of_step
from guidedcd.testing import checks

NAMES = ("x0-motion", "dynamics", "saturation")
SCHEDULES = {
    "eps": NoiseSchedule.scaled_linear(),
    "v": NoiseSchedule.scaled_linear(prediction="v"),
    "flow": NoiseSchedule.flow(),
}


@pytest.mark.parametrize("check", [check for name in NAMES for check in checks("energy", name)], ids=str)
def test_conformance(check):
    """Every shipped energy of the output passes the conformance kit."""
    check()


def known(x: torch.Tensor, sigma: float = 0.7):
    """Clean latents as an energy receives them, at a noise level of a flow model."""
    seen, level = seen_of_latents(x, torch.full((len(x),), 700)), torch.full((len(x),), sigma, dtype=x.dtype)
    return attrs.evolve(seen, alpha=1 - level, sigma=level, z=x * (1 - sigma))


def latents(seed: int, frames: int = 5, batch: int = 2) -> torch.Tensor:
    """Random clean latents (B, 3, F, 4, 2), float64."""
    return noise(seed, 0, (batch, 3, frames, 4, 2)).double()


@given(seed=st.integers(0, 50), frames=st.integers(2, 6), span=st.integers(1, 6), signed=st.booleans())
@settings(max_examples=30, deadline=None)
def test_x0_motion_is_the_sum_over_pairs(seed, frames, span, signed):
    """It equals FlowMotion's formula, written as a loop over pairs of frames, with both weights."""
    x, ref = latents(seed, frames), latents(seed + 100, frames)
    config = X0MotionConfig(span=span, signed=signed, motion=5.0, content=20.0)
    energy = X0Motion(config)(known(x), known(ref))
    squares = []
    for f in range(frames):
        for j in range(f + 1, min(f + span, frames - 1) + 1):
            one, other = x[:, :, j] - x[:, :, f], ref[:, :, j] - ref[:, :, f]
            squares.append(((one - other) if signed else (one.abs() - other.abs())).square().flatten(1).mean(1))
    expected = 5 * torch.stack(squares).mean(0) + 20 * (x - ref).square().flatten(1).mean(1)

    torch.testing.assert_close(energy, expected, rtol=1e-12, atol=1e-12)


@given(seed=st.integers(0, 50), frames=st.integers(2, 8))
@settings(max_examples=30, deadline=None)
def test_signed_pairs_are_the_distance_without_the_temporal_mean(seed, frames):
    """Sum over f, j of |d_f - d_j|^2 = 2 F sum over f of |d_f - mean d|^2, with d the distance from the reference."""
    d = latents(seed, frames) - latents(seed + 100, frames)
    pairs = differences(d).square().flatten(1).sum(1)
    centred = d - d.mean(2, keepdim=True)
    energy = X0Motion(X0MotionConfig(signed=True, motion=1.0))(known(d), known(0 * d))

    torch.testing.assert_close(pairs, 2 * frames * centred.square().flatten(1).sum(1), rtol=1e-10, atol=1e-10)
    mean = pairs / (frames * (frames - 1)) / d[0, :, 0].numel()
    torch.testing.assert_close(energy, mean, rtol=1e-10, atol=1e-12)


def test_dynamics_is_one_sided():
    """A sample with more variance over frames has energy 0; with a quarter it has (log 4 + margin)^2."""
    ref = latents(0)
    centred = ref.mean(2, keepdim=True) + 0.5 * (ref - ref.mean(2, keepdim=True))
    energy = Dynamics(DynamicsConfig(margin=0.5))

    expected = torch.full((2,), (torch.tensor(4.0).log().item() + 0.5) ** 2, dtype=torch.float64)
    torch.testing.assert_close(energy(known(centred), known(ref)), expected, rtol=1e-4, atol=0)
    assert Dynamics(DynamicsConfig())(known(ref), known(centred)).tolist() == [0, 0]
    still = ref[:, :, :1].expand_as(ref)
    assert energy(known(still), known(ref)).isfinite().all()


def test_dynamics_acts_at_its_noise_levels():
    """Outside of `levels`, sigma / (alpha + sigma), the energy and its gradient are 0."""
    ref, energy = latents(0), Dynamics(DynamicsConfig())
    for sigma, acts in ((0.4, False), (0.5, True), (0.95, True), (0.97, False)):
        assert (energy(known(0.1 * ref, sigma), known(ref)) > 0).all() == acts


def test_saturation_is_the_sum_over_channels():
    """Channels that vary e times more than the reference's count 1 each, others 0."""
    ref = latents(0)
    scaled = ref * torch.tensor([torch.e, 0.5, torch.e]).view(1, 3, 1, 1, 1)
    energy = Saturation(SaturationConfig())(known(scaled), known(ref))

    torch.testing.assert_close(energy, torch.full((2,), 2.0, dtype=torch.float64), rtol=1e-4, atol=0)


@given(
    seed=st.integers(0, 30),
    prediction=st.sampled_from(sorted(SCHEDULES)),
    energy=st.sampled_from([X0Motion(X0MotionConfig()), Dynamics(DynamicsConfig()), Saturation(SaturationConfig())]),
    timestep=st.integers(520, 900),
)
@settings(max_examples=40, deadline=None)
def test_a_guided_step_lowers_the_energy(seed, prediction, energy, timestep):
    """For eps, v and flow, a small guided step moves the latents so that the energy of the same output is lower."""
    schedule, t = SCHEDULES[prediction], torch.full((2,), timestep)
    z, o_c, o_u = (noise(seed, draw, (2, 3, 5, 4, 2)).double() for draw in range(3))
    omega = torch.full((2,), 3.0)
    ref = seen_of_latents(latents(seed + 100) * (4 if isinstance(energy, Dynamics) else 0.25), t)
    step = TeacherStep(z, t, o_c, o_u, omega)
    seen = seen_of_step(schedule, step)
    before = energy(seen, ref)
    if not (before > 0).all():
        return
    (score,) = output_gradients(seen, [EnergyTerm(name="x", energy=energy, reference=ref)])
    t_next = schedule.previous(t, 50)
    moved = guided_step(schedule, step, t_next, [(score, torch.ones(2))]) - guided_step(schedule, step, t_next)
    unit = moved / moved.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)
    after = energy(seen_of_step(schedule, attrs.evolve(step, z=z + 1e-4 * unit)), ref)

    assert (after < before).all()


def test_the_default_strength_gives_way_to_a_scale():
    """Without a stated strength each energy has its own relative one; a scale takes its place."""
    for config, relative in ((X0MotionConfig, 0.01), (DynamicsConfig, 0.3), (SaturationConfig, 0.01)):
        assert config().is_relative and config().strength == relative and config().reference == "prediction"
        assert not config(scale=5.0).is_relative and config(scale=5.0).strength == 5.0
        assert config(relative=0.2).strength == 0.2
