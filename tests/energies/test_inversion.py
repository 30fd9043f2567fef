"""What an energy compares against."""

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
    found = list(inversion.invert(teacher, z0, cond, STEPS, 4))
    wanted = by_hand(teacher, z0, cond, 4)

    assert list(range(5)) == [index for index, _ in found]
    for (_, ours), theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_videos_may_stop_at_different_points(teacher, clips):
    """A batch with different last indices gives each video what it gets alone, and calls the network no more often."""
    z0, cond = clips
    calls = []
    counting = types.SimpleNamespace(
        schedule=teacher.schedule, net=lambda z, *rest: calls.append(len(z)) or teacher.net(z, *rest)
    )
    together = dict(inversion.invert(counting, z0, cond, STEPS, [1, 3, 0]))

    assert calls == [3, 2, 1, 1]
    for row, last in enumerate([1, 3, 0]):
        alone = [
            z for _, z in inversion.invert(teacher, z0[[row]], {k: v[[row]] for k, v in cond.items()}, STEPS, last)
        ]
        torch.testing.assert_close(together[last][row], alone[-1][0], atol=1e-5, rtol=1e-5)
    assert torch.equal(together[3][0], together[1][0])


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
        wanted = schedule.add_noise(x0, eps, grid[index].expand(2))
        torch.testing.assert_close(z, wanted, atol=1e-5, rtol=1e-5)


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
