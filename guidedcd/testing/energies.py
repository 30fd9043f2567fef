"""The rules of energies. Legend: B batch, C channels, F frames, H and W latent size."""

from __future__ import annotations

import re
from copy import deepcopy
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

import torch
from torch import Tensor

from guidedcd.diffusion.guidance import TeacherStep, guided_step
from guidedcd.diffusion.seen import Seen
from guidedcd.energies.gradients import is_reference_free, kept
from guidedcd.testing.helpers import CAPTIONS, T, is_batch, random, same_in_threads, unchanged

if TYPE_CHECKING:
    from guidedcd.testing.subject import Subject


_OTHER_DTYPE = re.compile(r"dtype|scalar type|[Ii]nput type")
"""Errors of torch about float32 weights and float64 inputs."""


def look(subject: Subject, z: Tensor, t: int = T) -> Seen:
    """A forward pass of the tiny teacher on latents (B, C, F, H, W), with the records that the energy needs."""
    teacher, captions = subject.teacher, CAPTIONS[: len(z)]
    needs = tuple(getattr(subject.built, "needs", ()))
    return teacher.seen(z, torch.full((len(z),), t), teacher.embed(captions), needs=needs, captions=captions)


def latents(subject: Subject, seed: int, batch: int = 2) -> Tensor:
    """Noisy latents (batch, C, F, H, W) in the tiny teacher's size."""
    return random((batch, *subject.teacher.geometry.latent_shape), seed)


def reference(subject: Subject, batch: int = 2) -> Any:
    """The reference in these checks: a forward pass, what `keep` makes of it, or None for a reference-free energy."""
    if is_reference_free(subject.built):
        return None
    with torch.no_grad():
        return kept(subject.built, look(subject, latents(subject, 1)[:batch]))


def energy_is_one_number_per_sample(subject: Subject) -> None:
    """It returns finite energies (B,), and changes neither the global random state nor the gradient mode."""
    seen, other = look(subject, latents(subject, 2)), reference(subject)
    with unchanged("the energy"):
        is_batch(subject.built(seen, other), 2, "the energy")


def energy_has_a_gradient(subject: Subject) -> None:
    """Its gradient with respect to the latents is finite, not zero, and stays within the sample."""
    z = latents(subject, 2).requires_grad_()
    energy = subject.built(look(subject, z), reference(subject))
    assert energy.requires_grad, "the energy does not depend on seen.z: something detached it"
    (score,) = torch.autograd.grad(energy[0], z, allow_unused=True)
    assert score is not None, "the energy does not depend on seen.z: something detached it"
    assert torch.isfinite(score).all(), "the energy's gradient is not finite"
    assert score[0].abs().max() > 0, "the energy's gradient is zero"
    assert score[1].abs().max() == 0, "the energy of one sample depends on another sample of the batch"


def energy_falls_along_its_score(subject: Subject) -> None:
    """A small guided step lowers it."""
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
    # Relative to the latents' norm: the first order must dominate curvature, but exceed rounding.
    for share in (1e-2, 3e-3, 1e-3):
        with torch.no_grad():
            after = subject.built(
                look(subject, z + share * z.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1) * unit), other
            )
        if (after < before.detach()).all():
            return
    raise AssertionError(
        f"a guided step raised the energy from {before.tolist()} to {after.tolist()}: autograd must give the gradient "
        "of the returned value, and lower values must be better"
    )


def energy_is_least_at_its_reference(subject: Subject) -> None:
    """A sample that equals its reference has the least energy; a reference-free energy has no such point."""
    if is_reference_free(subject.built):
        return
    with torch.no_grad():
        own = look(subject, latents(subject, 1))
        other = kept(subject.built, own)
        same, different = subject.built(own, other), subject.built(look(subject, latents(subject, 2)), other)
    assert (same <= different + 1e-6).all(), (
        f"energy {same.tolist()} at the reference, {different.tolist()} elsewhere; if it compares with nothing, set "
        "`reference_free = True`"
    )


def energy_treats_samples_alone(subject: Subject) -> None:
    """The energy of a sample does not depend on the rest of the batch."""
    z = latents(subject, 2)
    with torch.no_grad():
        both = subject.built(look(subject, z), reference(subject))
        first = subject.built(look(subject, z[:1]), reference(subject, 1))
    assert torch.allclose(both[:1], first, rtol=1e-3, atol=1e-7), f"{both[0].item()} in a batch, {first.item()} alone"


def energy_has_the_right_gradient(subject: Subject) -> None:
    """In float64, its gradient equals the difference of energies a small step apart."""
    teacher = subject.teacher64
    z = latents(subject, 2, 1).double()
    needs = tuple(getattr(subject.built, "needs", ()))

    def seen(values: Tensor) -> Seen:
        cond = {key: value.double() for key, value in teacher.embed(CAPTIONS[:1]).items()}
        return teacher.seen(values, torch.full((1,), T), cond, needs=needs, captions=CAPTIONS[:1])

    other = None
    inputs = z.clone().requires_grad_()
    try:
        if not is_reference_free(subject.built):
            with torch.no_grad():
                other = kept(subject.built, seen(latents(subject, 1)[:1].double()))
        (score,) = torch.autograd.grad(subject.built(seen(inputs), other).sum(), inputs)
    except RuntimeError as error:
        if _OTHER_DTYPE.search(str(error)):
            raise SkipTest("it computes in float32 only") from error
        raise
    if not score.abs().max() > 0:
        return  # another rule reports it
    step = 1e-3 * z.norm() * score / score.norm()
    with torch.no_grad():
        difference = (subject.built(seen(z + step), other) - subject.built(seen(z - step), other)).sum() / 2
    slope = (score * step).sum()
    assert abs(slope - difference) <= 0.05 * abs(difference) + 1e-12, (
        f"autograd gives {slope.item():.4g} along a step, the energies differ by {difference.item():.4g}: a detached "
        "term or a custom backward is wrong"
    )


def energy_follows_the_device(subject: Subject) -> None:
    """It creates its tensors on the device of its arguments; it is tried on the meta device, as in a plan."""
    teacher = subject.meta_teacher
    z = torch.empty(2, *teacher.geometry.latent_shape, device="meta")
    needs = tuple(getattr(subject.built, "needs", ()))

    def seen() -> Seen:
        t = torch.full((2,), T, device="meta")
        return teacher.seen(z, t, teacher.embed(CAPTIONS), needs=needs, captions=CAPTIONS)

    try:
        energy = deepcopy(subject.built)  # it may keep tensors, which have no values on this device
        with torch.no_grad():
            other = None if is_reference_free(energy) else kept(energy, seen())
            value = energy(seen(), other)
    except RuntimeError as error:
        if "device" in str(error) and "item" not in str(error):
            raise AssertionError(f"it mixes devices: create tensors on seen.z.device ({error})") from error
        return  # it reads values of tensors, which have none on this device
    except (NotImplementedError, TypeError):  # `numpy()` of such a tensor; a member that cannot be copied
        return
    assert value.device == z.device, f"the energies are on {value.device}, the latents on another device"


def energy_is_safe_in_threads(subject: Subject) -> None:
    """Calls from several threads do not disturb each other."""
    passes = []
    with torch.no_grad():
        other = reference(subject, 1)
        passes = [look(subject, latents(subject, seed, 1)) for seed in range(4)]

    def energy(seen: Seen) -> Tensor:
        with torch.no_grad():
            return subject.built(seen, other)

    assert same_in_threads(energy, passes), "calls from several threads disturb each other: keep no state in self"


RULES = [
    energy_is_one_number_per_sample,
    energy_has_a_gradient,
    energy_falls_along_its_score,
    energy_is_least_at_its_reference,
    energy_treats_samples_alone,
    energy_has_the_right_gradient,
    energy_follows_the_device,
    energy_is_safe_in_threads,
]
