"""Primary temporal attention."""

from __future__ import annotations

import pytest
import torch
from guidedcd_pta import PTAConfig
from guidedcd_pta.energy import PTA, layer_energy, primary
from hypothesis import given, settings
from hypothesis import strategies as st

from guidedcd.diffusion.guidance import TeacherStep, guided_step
from guidedcd.diffusion.randomness import noise
from guidedcd.testing.tiny_teacher import tiny_teacher


def maps(seed: int, *shape: int) -> torch.Tensor:
    """Random attention rows that sum to 1, float64."""
    return noise(seed, 0, shape).double().softmax(-1)


def tied(seed: int, count: int, frames: int) -> torch.Tensor:
    """Rows of small whole numbers, so that the largest is often there more than once."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 3, (count, frames, frames), generator=generator).double()


@given(seed=st.integers(0, 100), frames=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_first_keeps_one_largest_entry_per_row(seed, frames):
    """With ties "first" there is exactly one entry per row, a largest one, and none before it is as large."""
    ref = tied(seed, 5, frames)
    mask = primary(ref)

    assert (mask.sum(-1) == 1).all()
    assert torch.equal(ref[mask].view(5, frames), ref.amax(-1))
    before = mask.cumsum(-1) == 0
    assert not ((ref == ref.amax(-1, keepdim=True)) & before).any()


@given(seed=st.integers(0, 100), frames=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_all_keeps_every_largest_entry(seed, frames):
    """With ties "all" the mask is Eq. 7: every entry equal to its row's maximum."""
    ref = tied(seed, 5, frames)

    assert torch.equal(primary(ref, ties="all"), ref == ref.amax(-1, keepdim=True))


@pytest.mark.parametrize("ties", ["first", "all"])
def test_the_option_top_keeps_the_largest_entries(ties):
    """top = 2 keeps the two largest of a row, and more than F keeps all; without ties both ways agree."""
    ref = maps(0, 6, 5, 5)
    expected = ref >= ref.topk(2, -1).values[..., -1:]

    assert torch.equal(primary(ref, 2, ties), expected)
    assert primary(ref, 9, ties).all()
    assert (primary(tied(1, 4, 5), 2).sum(-1) == 2).all()


def test_the_gradient_is_the_closed_form():
    """d energy / d maps = 2 (maps - reference) mask / number of masked entries, per sample."""
    ref, gen = maps(0, 2, 6, 5, 5), maps(1, 2, 6, 5, 5).requires_grad_(True)
    mask = primary(ref)
    (grad,) = torch.autograd.grad(layer_energy(gen, ref, mask).sum(), gen)

    torch.testing.assert_close(grad, (2 * (gen - ref) * mask / (6 * 5)).detach(), rtol=1e-12, atol=1e-15)


@pytest.fixture(scope="module")
def teacher():
    """One tiny teacher in float64 for all tests."""
    return tiny_teacher(frames=4).to("cpu", torch.float64)


def seen(teacher, seed: int, energy: PTA, grad: bool = False):
    """The teacher's forward pass of two random samples."""
    z = noise(seed, 0, (2, *teacher.geometry.latent_shape)).double().requires_grad_(grad)
    return teacher.seen(z, torch.tensor([700, 900]), teacher.null(2), energy.needs)


def test_energy_is_per_sample(teacher):
    """(B,) numbers, each that of the sample alone; zero on the sample's own reference."""
    energy = PTA(PTAConfig())
    energies = energy(seen(teacher, 0, energy), seen(teacher, 1, energy))
    one = [
        energy(
            *(
                teacher.seen(
                    noise(s, 0, (2, *teacher.geometry.latent_shape)).double()[[1]],
                    torch.tensor([900]),
                    teacher.null(1),
                    energy.needs,
                )
                for s in (0, 1)
            )
        )
    ]

    assert energies.shape == (2,) and (energies > 0).all()
    torch.testing.assert_close(energies[1], one[0][0])
    assert not energy(seen(teacher, 0, energy), seen(teacher, 0, energy)).any()


@pytest.mark.parametrize("config", [PTAConfig(), PTAConfig(layers="motionclone", top=2), PTAConfig(ties="all")])
def test_a_small_guided_step_lowers_it(teacher, config):
    """The displacement of one guided step with a small scale, applied at z, lowers the energy of both samples."""
    energy = PTA(config)
    reference = seen(teacher, 1, energy)
    here = seen(teacher, 0, energy, grad=True)
    before = energy(here, reference)
    (score,) = torch.autograd.grad(before.sum(), here.z)
    assert score.isfinite().all() and score.flatten(1).any(1).all()

    z, omega = here.z.detach(), torch.tensor([7.5, 7.5]).double()
    output = here.output.detach()
    step = (teacher.schedule, TeacherStep(z, here.t, output, output, omega), here.t - 20)
    unit = 1e-3 / score.flatten(1).norm(dim=1)
    moved = guided_step(*step, [(score, unit)]) - guided_step(*step)
    after = energy(teacher.seen(z + moved, here.t, teacher.null(2), energy.needs), reference)

    assert (after < before.detach()).all()
    first_order = (score * moved).flatten(1).sum(1)
    torch.testing.assert_close(after - before.detach(), first_order, rtol=0.1, atol=0)


def test_the_reference_gets_no_gradient(teacher):
    """Only the generated maps are differentiated."""
    energy = PTA(PTAConfig())
    reference = seen(teacher, 1, energy, grad=True)
    here = seen(teacher, 0, energy, grad=True)
    grads = torch.autograd.grad(energy(here, reference).sum(), [here.z, reference.z], allow_unused=True)

    assert grads[0] is not None
    assert grads[1] is None


def test_options_are_checked():
    """top begins at 1 and ties are first or all; the need names the layers."""
    for wrong in ({"top": 0}, {"ties": "last"}):
        with pytest.raises(ValueError, match="top|ties"):
            PTAConfig(**wrong)
    assert PTA(PTAConfig(layers="up_blocks.1")).needs == ("temporal-attention:up_blocks.1",)
    with pytest.raises(ValueError, match="ties"):
        primary(maps(0, 1, 2, 2), ties="none")
