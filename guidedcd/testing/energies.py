"""What an energy must do. Legend: B batch, C channels, F frames, H and W latent size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guidedcd.diffusion.guidance import TeacherStep, guided_step
from guidedcd.diffusion.seen import Seen
from guidedcd.testing.helpers import CAPTIONS, T, is_batch, random, unchanged

if TYPE_CHECKING:
    from guidedcd.testing.subject import Subject


def look(subject: Subject, z: Tensor, t: int = T) -> Seen:
    """What the tiny teacher says of latents (B, C, F, H, W), with the records that the energy needs."""
    teacher, captions = subject.teacher, CAPTIONS[: len(z)]
    needs = tuple(getattr(subject.built, "needs", ()))
    return teacher.seen(z, torch.full((len(z),), t), teacher.embed(captions), needs=needs, captions=captions)


def latents(subject: Subject, seed: int, batch: int = 2) -> Tensor:
    """Noisy latents of the tiny teacher's size."""
    return random((batch, *subject.teacher.geometry.latent_shape), seed)


def reference(subject: Subject) -> Seen:
    """What an energy compares with in these checks."""
    with torch.no_grad():
        return look(subject, latents(subject, 1))


def energy_is_one_number_per_sample(subject: Subject) -> None:
    """It returns (B,), finite, and leaves the random generator and the gradient mode alone."""
    seen, other = look(subject, latents(subject, 2)), reference(subject)
    with unchanged("the energy"):
        is_batch(subject.built(seen, other), 2, "the energy")


def energy_has_a_gradient(subject: Subject) -> None:
    """Its gradient reaches the latents of every sample, finite and not zero, and stays within the sample."""
    z = latents(subject, 2).requires_grad_()
    energy = subject.built(look(subject, z), reference(subject))
    assert energy.requires_grad, "the energy does not depend on seen.z: something detached it"
    (score,) = torch.autograd.grad(energy[0], z, allow_unused=True)
    assert score is not None, "the energy does not depend on seen.z: something detached it"
    assert torch.isfinite(score).all(), "the energy's gradient is not finite"
    assert score[0].abs().max() > 0, "the energy's gradient is zero"
    assert score[1].abs().max() == 0, "the energy of one sample depends on another sample of the batch"


def energy_falls_along_its_score(subject: Subject) -> None:
    """One small guided step lowers it."""
    teacher = subject.teacher
    z = latents(subject, 2).requires_grad_()
    other = reference(subject)
    seen = look(subject, z)
    before = subject.built(seen, other)
    (score,) = torch.autograd.grad(before.sum(), z)
    z, output = z.detach(), seen.output.detach()
    batch = len(z)
    t, zero, one = torch.full((batch,), T), torch.zeros(batch), torch.ones(batch)

    def step(*terms: tuple[Tensor, Tensor]) -> Tensor:
        return guided_step(teacher.schedule, TeacherStep(z, t, output, output, zero), t - 20, terms)

    moved = step((score, one)) - step()
    unit = moved / moved.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)
    for share in (1e-2, 3e-3, 1e-3):  # of the latents' norm: first order must win over curvature, and over rounding
        with torch.no_grad():
            after = subject.built(
                look(subject, z + share * z.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1) * unit), other
            )
        if (after < before.detach()).all():
            return
    raise AssertionError(
        f"a guided step raised the energy from {before.tolist()} to {after.tolist()}: its gradient must be that of the "
        "value, and the value lower for better samples"
    )


def energy_is_least_at_its_reference(subject: Subject) -> None:
    """A sample equal to its reference has no more energy than another one."""
    other = reference(subject)
    with torch.no_grad():
        same, different = subject.built(other, other), subject.built(look(subject, latents(subject, 2)), other)
    assert (same <= different + 1e-6).all(), f"energy {same.tolist()} at the reference, {different.tolist()} elsewhere"


def energy_treats_samples_alone(subject: Subject) -> None:
    """A batch of two has the energies of the two alone."""
    z, r = latents(subject, 2), latents(subject, 1)
    with torch.no_grad():
        both = subject.built(look(subject, z), look(subject, r))
        first = subject.built(look(subject, z[:1]), look(subject, r[:1]))
    assert torch.allclose(both[:1], first, rtol=1e-3, atol=1e-7), f"{both[0].item()} in a batch, {first.item()} alone"


RULES = [
    energy_is_one_number_per_sample,
    energy_has_a_gradient,
    energy_falls_along_its_score,
    energy_is_least_at_its_reference,
    energy_treats_samples_alone,
]
