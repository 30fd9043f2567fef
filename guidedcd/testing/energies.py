"""The rules of energies. Legend: B batch, C channels, F frames, H and W latent size."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

import attrs
import torch
from torch import Tensor

from guidedcd.diffusion.guidance import TeacherStep, guided_step
from guidedcd.diffusion.schedule import expand
from guidedcd.diffusion.seen import Seen
from guidedcd.energies.gradients import EnergyTerm, energy_values, kept
from guidedcd.energies.output import seen_of_step
from guidedcd.energies.traits import IN_TRAINING, check_traits, is_of_output, is_reference_free
from guidedcd.errors import GuidedCDError
from guidedcd.testing.helpers import CAPTIONS, T, frees_memory, is_batch, random, same_in_threads, unchanged

if TYPE_CHECKING:
    from guidedcd.testing.checked_component import CheckedComponent


OMEGA = 2.0
"""Guidance strength of the steps that energies of the output receive."""
SCALES = (1.0, 0.25, 4.0)
"""Sizes of the latents among which a one-sided energy has one with a gradient."""
_OTHER_DTYPE = re.compile(r"dtype|scalar type|[Ii]nput type")
"""Errors of torch about float32 weights and float64 inputs."""


def look(checked: CheckedComponent, z: Tensor, t: int = T, teacher: Any = None, guided: bool = True) -> Seen:
    """What the energy receives for latents (B, C, F, H, W): a forward pass of a tiny teacher, or known outputs.

    A reference of an energy of the output is not `guided`.
    """
    teacher, captions = teacher or checked.teacher, CAPTIONS[: len(z)]
    times = torch.full((len(z),), t, device=z.device)
    if is_of_output(checked.built):
        return output_pass(teacher, z, times, captions, guided=guided)
    needs = tuple(getattr(checked.built, "needs", ()))
    cond = {key: value.to(z.dtype) for key, value in teacher.embed(captions).items()}
    return teacher.seen(z, times, cond, needs=needs, captions=captions)


def output_pass(
    teacher: Any, z: Tensor, t: Tensor, captions: Sequence[str] = (), moved: float = 0.0, guided: bool = True
) -> Seen:
    """A step with small constant outputs, as energies of the output receive it.

    With `moved`, the noisy latents and outputs are others, but the predicted clean latents are the same.
    """
    o_c, o_u, other = (0.1 * random((2, *z.shape[1:]), seed)[: len(z)].to(z.device, z.dtype) for seed in (11, 12, 13))
    if moved:
        _, sigma = teacher.schedule.alpha_sigma(t)  # eps: x0 = (z - sigma output) / alpha
        z, o_c, o_u = z + moved * other, *(one + moved * other / expand(sigma, z) for one in (o_c, o_u))
    omega = torch.full((len(z),), OMEGA, device=z.device)
    return seen_of_step(teacher.schedule, TeacherStep(z, t, o_c, o_u, omega), captions, teacher.decode, guided=guided)


def latents(checked: CheckedComponent, seed: int, batch: int = 2) -> Tensor:
    """Noisy latents (batch, C, F, H, W) in the tiny teacher's size."""
    return random((batch, *checked.teacher.geometry.latent_shape), seed)


def sample(checked: CheckedComponent, batch: int = 2) -> Tensor:
    """Noisy latents of the sample in these checks, for which the energy has a gradient if it has one at all.

    An energy of the output may be one-sided: it has none for samples that, say, move more than their reference.
    """
    z = latents(checked, 2)
    if is_of_output(checked.built):
        for scale in SCALES:
            scaled = (scale * z).requires_grad_()
            energy = checked.built(look(checked, scaled), reference(checked))
            if isinstance(energy, Tensor) and energy.requires_grad:
                (score,) = torch.autograd.grad(energy.sum(), scaled, allow_unused=True)
                if score is not None and (score.flatten(1).abs().amax(1) > 0).all():
                    return scale * z[:batch]
    return z[:batch]


def reference(
    checked: CheckedComponent, batch: int = 2, teacher: Any = None, dtype: torch.dtype = torch.float32
) -> Any:
    """The reference in these checks: a forward pass, what `keep` makes of it, or None for a reference-free energy."""
    if is_reference_free(checked.built):
        return None
    with torch.no_grad():
        return kept(checked.built, look(checked, latents(checked, 1)[:batch].to(dtype), teacher=teacher, guided=False))


def energy_states_what_it_is(checked: CheckedComponent) -> None:
    """Its `needs`, `through` and options agree, and training has its reference."""
    energy, config = checked.built, checked.options
    try:
        check_traits(energy, config, "the energy")
    except GuidedCDError as error:
        raise AssertionError(str(error)) from error
    if is_of_output(energy) and not is_reference_free(energy):
        assert config.reference in IN_TRAINING, (
            f"the reference '{config.reference}' takes passes of the teacher, which training does not have: derive the "
            "options from OutputEnergyConfig"
        )


def energy_is_one_number_per_sample(checked: CheckedComponent) -> None:
    """It returns finite energies (B,), draws no random numbers and leaves torch's defaults alone."""
    seen, other = look(checked, sample(checked)), reference(checked)
    with unchanged("the energy"):
        is_batch(checked.built(seen, other), 2, "the energy")


def energy_has_a_gradient(checked: CheckedComponent) -> None:
    """Its gradient with respect to the latents is finite, not zero, and stays within the sample."""
    z = sample(checked).requires_grad_()
    energy = checked.built(look(checked, z), reference(checked))
    assert energy.requires_grad, "the energy does not depend on seen.z: something detached it"
    (score,) = torch.autograd.grad(energy[0], z, allow_unused=True)
    assert score is not None, "the energy does not depend on seen.z: something detached it"
    assert torch.isfinite(score).all(), "the energy's gradient is not finite"
    assert score[0].abs().max() > 0, "the energy's gradient is zero"
    assert score[1].abs().max() == 0, "the energy of one sample depends on another sample of the batch"


def energy_falls_along_its_score(checked: CheckedComponent) -> None:
    """A small guided step lowers it."""
    teacher = checked.teacher
    z = sample(checked).requires_grad_()
    other = reference(checked)
    seen = look(checked, z)
    before = checked.built(seen, other)
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
            after = checked.built(
                look(checked, z + share * z.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1) * unit), other
            )
        if (after < before.detach()).all():
            return
    raise AssertionError(
        f"a guided step raised the energy from {before.tolist()} to {after.tolist()}: autograd must give the gradient "
        "of the returned value, and lower values must be better"
    )


def energy_is_least_at_its_reference(checked: CheckedComponent) -> None:
    """A sample that equals its reference has the least energy; a reference-free energy has no such point."""
    if is_reference_free(checked.built):
        return
    with torch.no_grad():
        own = look(checked, latents(checked, 1), guided=False)
        other = kept(checked.built, own)
        same, different = checked.built(own, other), checked.built(look(checked, sample(checked)), other)
    assert (same <= different + 1e-6).all(), (
        f"energy {same.tolist()} at the reference, {different.tolist()} elsewhere; if it compares with nothing, set "
        "`reference_free = True`"
    )


def energy_treats_samples_alone(checked: CheckedComponent) -> None:
    """The energy of a sample does not depend on the rest of the batch."""
    z = sample(checked)
    with torch.no_grad():
        both = checked.built(look(checked, z), reference(checked))
        first = checked.built(look(checked, z[:1]), reference(checked, 1))
    assert torch.allclose(both[:1], first, rtol=1e-3, atol=1e-7), f"{both[0].item()} in a batch, {first.item()} alone"


def energy_has_the_right_gradient(checked: CheckedComponent) -> None:
    """In float64, its gradient equals the difference of energies a small step apart."""
    teacher, z = checked.teacher64, sample(checked, 1).double()
    inputs = z.clone().requires_grad_()
    try:
        other = reference(checked, 1, teacher, torch.float64)
        (score,) = torch.autograd.grad(checked.built(look(checked, inputs, teacher=teacher), other).sum(), inputs)
    except RuntimeError as error:
        if _OTHER_DTYPE.search(str(error)):
            raise SkipTest("it computes in float32 only") from error
        raise
    if not score.abs().max() > 0:
        return  # another rule reports it
    # Through the output alone, the latents are affine in z, so that nothing but the energy itself is curved. The
    # tolerance has room for a part in float32, such as a reward's network.
    size, tolerance = (1e-5, 5e-3) if is_of_output(checked.built) else (1e-3, 0.05)
    step = size * z.norm() * score / score.norm()
    with torch.no_grad():
        above, below = (checked.built(look(checked, at, teacher=teacher), other) for at in (z + step, z - step))
    difference, slope = (above - below).sum() / 2, (score * step).sum()
    assert abs(slope - difference) <= tolerance * abs(difference) + 1e-12, (
        f"autograd gives {slope.item():.4g} along a step, the energies differ by {difference.item():.4g}: a detached "
        "term or a custom backward is wrong"
    )


def energy_of_the_output_reads_the_prediction_alone(checked: CheckedComponent) -> None:
    """With `through = "output"`, it depends on the predicted clean latents and the noise level, and on nothing else."""
    if not is_of_output(checked.built):
        return
    z, t, other = sample(checked), torch.full((2,), T), reference(checked)
    with torch.no_grad():
        one, moved = (checked.built(output_pass(checked.teacher, z, t, CAPTIONS, by), other) for by in (0.0, 3.0))
    assert torch.allclose(one, moved, rtol=1e-3, atol=1e-6), (
        f"energy {one.tolist()}, but {moved.tolist()} for other noisy latents with the same prediction: read `x0` or "
        "`guided`, for the engine takes no gradient with respect to anything else"
    )


def energy_follows_the_device(checked: CheckedComponent) -> None:
    """It creates its tensors on the device of its arguments; it is tried on the meta device, as in a plan."""
    teacher = checked.meta_teacher
    z = torch.empty(2, *teacher.geometry.latent_shape, device="meta")

    try:
        energy = deepcopy(checked.built)  # it may keep tensors, which have no values on this device
        with torch.no_grad():
            other = None if is_reference_free(energy) else kept(energy, look(checked, z, teacher=teacher, guided=False))
            value = energy(look(checked, z, teacher=teacher), other)
    except RuntimeError as error:
        if "device" in str(error) and "item" not in str(error):
            raise AssertionError(f"it mixes devices: create tensors on seen.z.device ({error})") from error
        return  # it reads values of tensors, which have none on this device
    except (NotImplementedError, TypeError):  # `numpy()` of such a tensor; a member that cannot be copied
        return
    assert value.device == z.device, f"the energies are on {value.device}, the latents on another device"


def energy_is_safe_in_threads(checked: CheckedComponent) -> None:
    """Calls from several threads do not disturb each other."""
    passes = []
    with torch.no_grad():
        other = reference(checked, 1)
        passes = [look(checked, latents(checked, seed, 1)) for seed in range(4)]

    def energy(seen: Seen) -> Tensor:
        with torch.no_grad():
            return checked.built(seen, other)

    assert same_in_threads(energy, passes), "calls from several threads disturb each other: keep no state in self"


def energy_leaves_its_arguments(checked: CheckedComponent) -> None:
    """It changes no tensor of its arguments, and a run takes its values without an error."""
    seen = look(checked, sample(checked).requires_grad_())
    term = EnergyTerm(name=checked.component.name, energy=checked.built, reference=reference(checked))
    try:
        energy_values(term, seen)
    except GuidedCDError as error:
        raise AssertionError(str(error)) from error


def energy_frees_memory(checked: CheckedComponent) -> None:
    """It keeps no tensor of one call after another."""
    seen, other = look(checked, sample(checked)), reference(checked)
    frees_memory(lambda: checked.built(attrs.evolve(seen), other), "the energy")


def energy_reads_the_order_of_frames(checked: CheckedComponent) -> None:
    """An energy that states `reads_motion` has another value for frames in another order."""
    needs = tuple(getattr(checked.built, "needs", ()))
    if needs or not getattr(checked.built, "reads_motion", False):
        return  # records of a network cannot be reordered
    with torch.no_grad():
        seen, other = look(checked, sample(checked)), reference(checked)
        tensors = {name: getattr(seen, name) for name in ("z", "output", "guided_output")}
        turned = {name: one.roll(1, dims=2) for name, one in tensors.items() if one is not None}
        one, two = checked.built(seen, other), checked.built(attrs.evolve(seen, **turned), other)
    assert not torch.allclose(one, two, rtol=1e-5), "it states `reads_motion`, but the order of frames has no effect"


RULES = [
    energy_is_one_number_per_sample,
    energy_states_what_it_is,
    energy_has_a_gradient,
    energy_falls_along_its_score,
    energy_is_least_at_its_reference,
    energy_treats_samples_alone,
    energy_has_the_right_gradient,
    energy_of_the_output_reads_the_prediction_alone,
    energy_follows_the_device,
    energy_is_safe_in_threads,
    energy_leaves_its_arguments,
    energy_frees_memory,
    energy_reads_the_order_of_frames,
]
