"""References of energies: DDIM inversion, one noising step, clean latents."""

from __future__ import annotations

import types

import pytest
import torch

from guidedcd.diffusion.randomness import noise
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.energies import inversion
from guidedcd.testing.tiny_teacher import tiny_teacher

STEPS = 10


@pytest.fixture(scope="module")
def teacher():
    """One tiny teacher for all tests."""
    return tiny_teacher(frames=3)


@pytest.fixture(scope="module")
def clips(teacher):
    """Clean latents and conditioning of three captions."""
    z0 = noise(0, 0, (3, *teacher.geometry.latent_shape))
    return z0, teacher.embed(["a red circle", "a blue square moves", "nothing"])


def by_hand(teacher, z0, cond, last):
    """DDIM inversion as a loop over closed forms."""
    abar, z, path = teacher.schedule.alphas_cumprod, z0, []
    grid = [(i + 1) * (1000 // STEPS) - 1 for i in range(last + 1)]
    for i, t in enumerate(grid):
        before = abar[grid[i - 1]] if i else abar[0]
        with torch.no_grad():
            eps = teacher.net(z, torch.tensor([t]), cond)
        z = (z - (1 - before).sqrt() * eps) * (abar[t] / before).sqrt() + (1 - abar[t]).sqrt() * eps
        path.append(z)
    return path


def test_inversion_is_ddim_backwards_at_the_target_time(teacher, clips):
    """Every point equals a loop written by hand: caption, no guidance, network at the target timestep."""
    z0, cond = clips
    path = list(inversion.invert(teacher, z0, cond, STEPS, 4))

    assert list(range(5)) == [index for index, _ in path]
    for (_, z), expected in zip(path, by_hand(teacher, z0, cond, 4), strict=True):
        torch.testing.assert_close(z, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_videos_with_different_last_points_share_full_passes(teacher, clips, rows):
    """A finished video makes room for the next: latents as of `invert` alone, in the fewest passes."""
    z0, cond = clips
    z0 = torch.cat([z0, -z0])[:5]
    cond = {key: torch.cat([value, value])[:5] for key, value in cond.items()}
    indices = [{1}, set(), {4, 2}, {0}, {3}]
    passes = list(inversion.inversion_passes(teacher, z0, cond, 6, indices, rows))
    latents = {
        (video, index): z
        for step in passes
        for video, index, z in zip(step.videos, step.indices, step.latents, strict=True)
    }

    assert max(len(step.videos) for step in passes) == min(rows, 4)
    assert sum(len(step.videos) for step in passes) == sum(max(some) + 1 for some in indices if some)
    assert len(passes) == {1: 12, 3: 5, 8: 5}[rows]
    for video, some in enumerate(indices):
        own = {key: value[[video]] for key, value in cond.items()}
        for index, z in inversion.invert(teacher, z0[[video]], own, 6, max(some, default=-1)):
            torch.testing.assert_close(latents[video, index], z[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
def test_inversion_undoes_sampling_of_a_consistent_model(prediction):
    """For a model whose eps does not depend on z, DDIM steps lead back to where inversion began."""
    schedule = NoiseSchedule.flow() if prediction == "flow" else NoiseSchedule.scaled_linear(prediction=prediction)
    x0, eps = noise(3, 0, (2, 4, 2, 3, 3)).double(), noise(3, 1, (2, 4, 2, 3, 3)).double()

    def net(z, t, cond):
        alpha, sigma = (v.view(-1, 1, 1, 1, 1) for v in schedule.alpha_sigma(t, z.dtype))
        if prediction == "flow":
            return eps - x0
        return eps if prediction == "eps" else (eps - sigma * z) / alpha

    teacher = types.SimpleNamespace(schedule=schedule, net=net)
    start = schedule.add_noise(x0, eps, torch.tensor([0, 0]))
    path = dict(inversion.invert(teacher, start, {}, STEPS, STEPS - 2))
    grid = schedule.grid(STEPS)

    for index, z in path.items():
        expected = schedule.add_noise(x0, eps, grid[index].expand(2))
        torch.testing.assert_close(z, expected, atol=1e-5, rtol=1e-5)


def test_inversion_is_float32_at_least(teacher, clips):
    """Half-precision latents are inverted in float32: 200 steps in bfloat16 would be off by several per cent."""
    z0, cond = clips
    *_, (_, z) = inversion.invert(teacher, z0.bfloat16(), cond, STEPS, 2)

    assert torch.float32 == z.dtype


def test_single_step_is_one_noising(teacher, clips):
    """The single-step reference is add_noise at the same timestep; the clean one is the latents at timestep 0."""
    z0, _ = clips
    t = torch.tensor([500, 700, 900])
    eps = noise(0, 5, z0.shape)
    z, when = inversion.single_step(teacher.schedule, z0, eps, t)

    assert torch.equal(z, teacher.schedule.add_noise(z0, eps, t))
    assert torch.equal(when, t)
    assert torch.equal(inversion.clean(z0, t)[1], torch.zeros_like(t))
    assert inversion.clean(z0, t)[0] is z0
