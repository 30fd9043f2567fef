"""The rules of teachers. Legend: B batch, F frames."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import SkipTest

import torch
from torch import Tensor

from guidedcd.config import sections
from guidedcd.diffusion.seen import Seen
from guidedcd.errors import GuidedCDError
from guidedcd.models.student import Student, time_embedding
from guidedcd.testing.helpers import T, random

if TYPE_CHECKING:
    from guidedcd.testing.checked_component import CheckedComponent

LARGE = 300_000_000
"""Parameters above which a rule that copies the network is skipped."""


def _latents(checked: CheckedComponent, batch: int = 1, seed: int = 6) -> Tensor:
    """Noisy latents (batch, C, F, h, w) on the teacher's device."""
    return random((batch, *checked.built.geometry.latent_shape), seed).to(checked.built.device)


def _near(one: Tensor, other: Tensor, rounding: float = 1e-3) -> bool:
    return torch.allclose(one, other, rtol=rounding, atol=rounding * float(other.abs().max()))


def _predict(checked: CheckedComponent, z: Tensor, captions: list[str], t: int = T) -> Tensor:
    teacher = checked.built
    with torch.no_grad():
        return teacher.net(z, torch.full((len(z),), t, device=z.device), teacher.embed(captions))


def teacher_keeps_its_shapes(checked: CheckedComponent) -> None:
    """Pixels and latents have the shapes of its geometry, and predictions the shape of the latents."""
    teacher = checked.built
    geometry = teacher.geometry
    with torch.no_grad():
        z = teacher.encode(torch.full((1, *geometry.pixel_shape), 0.5))
        assert z.shape == (1, *geometry.latent_shape), (
            f"encode returned {tuple(z.shape)}, not {(1, *geometry.latent_shape)}"
        )
        frames = teacher.decode(z, [0])
        assert frames.shape == (1, 1, *geometry.pixel_shape[1:]), f"decode returned {tuple(frames.shape)}"
        assert frames.min() >= 0 and frames.max() <= 1, "decode must clamp to [0, 1]"
        cond, null = teacher.embed(["a ball"]), teacher.null(1)
        assert "prompt_embeds" in cond, f"embed returned {sorted(cond)} without prompt_embeds"
        for name, value in cond.items():
            assert value.shape == null[name].shape, f"{name} of the empty caption has shape {tuple(null[name].shape)}"
        seen = teacher.seen(z, torch.tensor([T], device=z.device), cond, captions=["a ball"])
        assert seen.output.shape == z.shape, f"the prediction has shape {tuple(seen.output.shape)}"


def teacher_has_one_fingerprint(checked: CheckedComponent) -> None:
    """Its fingerprint is a str that never changes."""
    first = checked.built.fingerprint()
    assert isinstance(first, str) and first == checked.built.fingerprint(), (
        "fingerprint() must return the same str every time"
    )


def teacher_decodes_chosen_frames(checked: CheckedComponent) -> None:
    """encode gives the same latents every time, and decode(z, frames) gives those frames of decode(z), in order."""
    teacher = checked.built
    video = random((1, *teacher.geometry.pixel_shape), 5).mul(0.2).add(0.5).clamp(0, 1).to(teacher.device)
    with torch.no_grad():
        z, again = teacher.encode(video), teacher.encode(video)
        assert torch.equal(z, again), "encode is random: use the mode of the posterior"
        frames = teacher.decode(z)
        assert frames.shape == video.shape, f"decode of all frames has shape {tuple(frames.shape)}"
        last = teacher.geometry.frames - 1
        chosen = teacher.decode(z, [0, last])
    # An autoencoder over time may decode a frame with its neighbours, so that only the nearest frame is compared.
    distances = (chosen[:, 1:] - frames).abs().flatten(2).mean(2)
    assert last == 0 or distances[0, last] <= distances[0].min() + 1e-4, "decode(z, frames) returns other frames"


def teacher_decodes_with_a_gradient(checked: CheckedComponent) -> None:
    """decode is differentiable in the latents, so that rewards can train a student."""
    z = _latents(checked).requires_grad_()
    pixels = checked.built.decode(z, [0])
    assert pixels.requires_grad, "decode is detached: remove torch.no_grad, rewards need its gradient"
    (gradient,) = torch.autograd.grad(pixels.sum(), z, allow_unused=True)
    assert gradient is not None and gradient.isfinite().all(), "the gradient of decode is missing or not finite"


def teacher_has_a_time_convention(checked: CheckedComponent) -> None:
    """Timestep 0 has the least noise, the last one the most, and predictions depend on the timestep."""
    schedule, device = checked.built.schedule, checked.built.device
    ends = torch.tensor([0, int(schedule.grid(10).max())], device=device)
    alpha, sigma = (values.flatten().tolist() for values in schedule.alpha_sigma(ends))
    assert alpha[0] > alpha[1] and sigma[0] < sigma[1], (
        f"at timesteps {ends.tolist()} alpha is {alpha} and sigma {sigma}: noise must grow with the timestep"
    )
    z = _latents(checked)
    early, late = (_predict(checked, z, ["a ball"], int(t)) for t in ends)
    assert not torch.equal(early, late), "the prediction does not depend on the timestep"


def teacher_states_its_prediction(checked: CheckedComponent) -> None:
    """The kind of prediction of its schedule is one that the engine supports, and gives finite clean latents."""
    schedule, z = checked.built.schedule, _latents(checked)
    t = torch.full((1,), T, device=z.device)
    alpha, sigma = schedule.alpha_sigma(t)
    output = _predict(checked, z, ["a ball"])
    try:
        seen = Seen(z=z, t=t, alpha=alpha, sigma=sigma, output=output, prediction=schedule.prediction)
        clean = seen.x0
    except (ValueError, KeyError, GuidedCDError) as error:
        raise AssertionError(f"schedule.prediction is {schedule.prediction!r}: {error}") from error
    assert clean.shape == z.shape and clean.isfinite().all(), "the predicted clean latents are not finite"


def teacher_treats_rows_alone(checked: CheckedComponent) -> None:
    """The prediction of a row does not depend on the other rows of the batch."""
    z = _latents(checked, 2)
    both = _predict(checked, z, ["a ball", "two boats"])
    alone = _predict(checked, z[:1], ["a ball"])
    assert _near(both[:1], alone), "the prediction of a row depends on another row of the batch"


def teacher_has_an_empty_caption(checked: CheckedComponent) -> None:
    """null(B) is the conditioning of the empty caption, B times, and differs from that of a caption."""
    teacher = checked.built
    with torch.no_grad():
        null, empty, caption = teacher.null(2), teacher.embed(["", ""]), teacher.embed(["a red ball", "a red ball"])
    for name, value in null.items():
        assert value.shape[0] == 2, f"null(2) has {value.shape[0]} rows of {name}"
        assert _near(value.float(), empty[name].float()), f"null(2) and embed(['', '']) differ in {name}"
    assert not torch.equal(null["prompt_embeds"], caption["prompt_embeds"]), "captions have no effect on embed"


def teacher_sees_what_it_predicts(checked: CheckedComponent) -> None:
    """seen(...).output equals net(...), and is differentiable in the latents."""
    teacher, z = checked.built, _latents(checked).requires_grad_()
    t = torch.full((1,), T, device=z.device)
    seen = teacher.seen(z, t, teacher.embed(["a ball"]), captions=["a ball"])
    assert _near(seen.output.detach(), _predict(checked, z.detach(), ["a ball"])), "seen and net predict differently"
    assert seen.output.requires_grad, "seen is detached: energies need the gradient with respect to z"
    assert seen.captions == ("a ball",), "seen does not pass the captions on"


def student_can_be_made(checked: CheckedComponent) -> None:
    """A student can be made of it: its network has a time embedding that takes guidance inputs."""
    try:
        time_embedding(checked.built)
    except GuidedCDError as error:
        raise AssertionError(str(error)) from error


def _student(checked: CheckedComponent, kind: str) -> Student:
    teacher = checked.built
    if sum(parameter.numel() for parameter in teacher.network.parameters()) > LARGE:
        raise SkipTest("its network is too large to be copied in a check")
    return Student(teacher, sections.Student(kind=kind), ("energy",)).to(teacher.device).eval()


def student_equals_teacher_at_first(checked: CheckedComponent) -> None:
    """A fresh student predicts what the teacher predicts, for any guidance."""
    _equals(checked, _student(checked, "full"))


def student_takes_adapters(checked: CheckedComponent) -> None:
    """A LoRA student finds layers for its adapters, and begins as the teacher."""
    student = _student(checked, "lora")
    adapted = [name for name, one in student.network.named_parameters() if one.requires_grad and "lora_" in name]
    assert adapted, "the network has no linear layer or convolution for adapters"
    _equals(checked, student)


def _equals(checked: CheckedComponent, student: Student) -> None:
    teacher, z = checked.built, _latents(checked)
    t, one = torch.full((1,), T, device=z.device), torch.ones(1, device=z.device)
    with torch.no_grad():
        prediction = student(z, t, teacher.embed(["a ball"]), 7 * one, one[:, None])
    assert _near(prediction, _predict(checked, z, ["a ball"])), (
        "a fresh student predicts something else than its teacher: `net` must use the network and timestep_cond given"
    )


def teacher_keeps_its_fingerprint(checked: CheckedComponent) -> None:
    """Its fingerprint is that of the loaded weights, also after training changed them."""
    teacher = checked.built
    before, weight = teacher.fingerprint(), next(teacher.network.parameters())
    original = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    try:
        assert teacher.fingerprint() == before, "fingerprint() hashes the present weights; compute it once and keep it"
    finally:
        with torch.no_grad():
            weight.copy_(original)


def teacher_can_be_exported(checked: CheckedComponent) -> None:
    """Its network has a configuration, which exports write; without one the student cannot be exported."""
    if not hasattr(checked.built.network, "config"):
        raise SkipTest("its network is no model of diffusers, so that its students cannot be exported")


RULES = [
    teacher_keeps_its_shapes,
    teacher_has_one_fingerprint,
    teacher_keeps_its_fingerprint,
    teacher_decodes_chosen_frames,
    teacher_decodes_with_a_gradient,
    teacher_has_a_time_convention,
    teacher_states_its_prediction,
    teacher_treats_rows_alone,
    teacher_has_an_empty_caption,
    teacher_sees_what_it_predicts,
    student_can_be_made,
    student_equals_teacher_at_first,
    student_takes_adapters,
    teacher_can_be_exported,
]
