"""What a run expects of a teacher, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from guidedcd.config.kinds import Chosen
from guidedcd.data.geometry import Geometry
from guidedcd.diffusion.schedule import PREDICTIONS
from guidedcd.errors import GuidedCDError
from guidedcd.plugins.registry import blame

METHODS = ("encode", "decode", "embed", "null", "net", "seen", "fingerprint", "to")


def build_teacher(chosen: Chosen, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """A teacher on its device, in `dtype` unless that is None.

    Raises:
        GuidedCDError: A member is missing or of the wrong kind.
    """
    whose, teacher = str(chosen.component()), chosen.build()
    check_members(teacher, whose)
    with blame(whose):
        return teacher.to(device) if dtype is None else teacher.to(device, dtype)


def check(teacher: Any, whose: str) -> None:
    """Check the members of a teacher, its conditioning and its fingerprint; no network is run but the text encoder.

    Args:
        teacher: The teacher.
        whose: The teacher in errors, such as "teacher 'tiny' of acme/tiny".

    Raises:
        GuidedCDError: A member is missing or of the wrong kind.
    """
    check_members(teacher, whose)
    with blame(whose), torch.no_grad():
        fingerprint, cond, null = teacher.fingerprint(), teacher.embed(["a ball", "a box"]), teacher.null(2)
    if not (isinstance(fingerprint, str) and fingerprint):
        raise GuidedCDError(f"{whose}: fingerprint() returned {fingerprint!r}; it must return a text.")
    for name, values in (("embed(captions)", cond), ("null(batch)", null)):
        _check_cond(values, f"{whose}: {name}")


def decoded_frames(teacher: Any, shape: Sequence[int] | None = None) -> int:
    """The number of first frames from which `decode(z, frames)` of a teacher can choose; all, unless it states it.

    Args:
        teacher: The teacher.
        shape: Of the latents (..., F, h, w); by default that of the teacher's videos.
    """
    whole = teacher.geometry.frames
    count = int(getattr(teacher, "decoded_frames", whole))
    if shape is None:
        return count
    frames: int = teacher.geometry.of_latents(shape).frames
    return frames if count == whole else min(count, frames)


def rehearse(teacher: Any, whose: str, seed: int = 0) -> None:
    """Encode one video of noise, predict once and decode a frame, so that a wrong teacher stops a run early.

    Args:
        teacher: The teacher on its device.
        whose: As in `check`.
        seed: Of the noise.

    Raises:
        GuidedCDError: A result has another shape than the teacher's geometry states, or is not finite.
    """
    geometry, device = teacher.geometry, teacher.device
    video = torch.rand(1, *geometry.pixel_shape, generator=torch.Generator().manual_seed(seed)).to(device)
    t = torch.full((1,), len(teacher.schedule) // 2, device=device)
    with blame(whose), torch.no_grad():
        z = teacher.encode(video)
        _check_result(z, (1, *geometry.latent_shape), f"{whose}: encode(video)")
        output = teacher.net(z, t, teacher.embed(["a ball rolls to the left"]))
        _check_result(output, (1, *geometry.latent_shape), f"{whose}: net(z, t, cond)")
        frame = teacher.decode(z, [0])
    _check_result(frame, (1, 1, *geometry.pixel_shape[1:]), f"{whose}: decode(z, [0])")


def _check_result(value: Any, shape: tuple[int, ...], what: str) -> None:
    if not isinstance(value, Tensor) or value.shape != shape:
        actual = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise GuidedCDError(f"{what} returned {actual}; the teacher's geometry states {shape}.")
    if not value.isfinite().all():
        raise GuidedCDError(f"{what} returned numbers that are not finite.")


def check_members(teacher: Any, whose: str) -> None:
    """Check the members of a teacher; nothing is run.

    Raises:
        GuidedCDError: A member is missing or of the wrong kind.
    """
    for name in METHODS:
        if not callable(getattr(teacher, name, None)):
            raise GuidedCDError(f"{whose} has no method `{name}`, which a teacher needs.")
    if not isinstance(getattr(teacher, "network", None), nn.Module):
        raise GuidedCDError(f"{whose} has no `network` that is a torch.nn.Module.")
    if not isinstance(getattr(teacher, "geometry", None), Geometry):
        raise GuidedCDError(f"{whose} has no `geometry` that is a guidedcd.Geometry.")
    schedule = getattr(teacher, "schedule", None)
    if not hasattr(schedule, "alpha_sigma"):
        raise GuidedCDError(f"{whose} has no `schedule` that is a NoiseSchedule.")
    if (prediction := getattr(schedule, "prediction", None)) not in PREDICTIONS:
        kinds = ", ".join(PREDICTIONS)
        raise GuidedCDError(f"{whose}: schedule.prediction is {prediction!r}; it must be one of {kinds}.")


def _check_cond(cond: Any, what: str) -> None:
    if not isinstance(cond, dict) or not isinstance(cond.get("prompt_embeds"), Tensor):
        raise GuidedCDError(f"{what} must return a dict of tensors with the key 'prompt_embeds'.")
    for key, value in cond.items():
        if not isinstance(value, Tensor) or value.shape[:1] != (2,):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise GuidedCDError(f"{what}[{key!r}] for two captions is {shape}; its first dimension must be 2.")
        if value.is_floating_point() and not value.is_meta and not value.isfinite().all():
            raise GuidedCDError(f"{what}[{key!r}] has numbers that are not finite.")


def check_latents(z: Tensor, geometry: Geometry, count: int) -> None:
    """Check the latents of `count` videos that a teacher encoded.

    Raises:
        GuidedCDError: They have another shape, or are not finite.
    """
    if z.shape != (count, *geometry.latent_shape):
        expected = (count, *geometry.latent_shape)
        raise GuidedCDError(f"the teacher's encode returned {tuple(z.shape)}; its geometry states {expected}.")
    if not z.is_meta and not z.isfinite().all():
        raise GuidedCDError("the teacher's encode returned latents that are not finite.")
