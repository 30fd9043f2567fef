"""The contract of rewards: what the engine reads of one, checked before the store is computed.

Legend: k chosen frames, H/W pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from guidedcd.acceleration.int8 import quantise
from guidedcd.config.kinds import Chosen
from guidedcd.config.run import Run
from guidedcd.console import console, file_size
from guidedcd.data.geometry import Geometry
from guidedcd.devices import blame_memory
from guidedcd.diffusion.randomness import reward_generator
from guidedcd.diffusion.seen import Seen
from guidedcd.errors import GuidedCDError
from guidedcd.models.teachers.contract import decoded_frames
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.plugins import objects, process_state
from guidedcd.plugins.registry import blame
from guidedcd.rewards.latents import FRAMES, LATENTS, REFERENCES, StudentPredictions, reads_latents

CAPTION = "a ball rolls to the left"


def build_rewards(run: Run) -> dict[str, Any]:
    """The run's rewards by name, frozen and in eval mode.

    Raises:
        GuidedCDError: One lacks a member that the engine reads; names its plugin.
    """
    return {chosen.name: build_reward(chosen) for chosen in run.chosen("reward")}


def build_reward(chosen: Chosen) -> Any:
    """A reward, frozen and in eval mode.

    Raises:
        GuidedCDError: It lacks a member that the engine reads, or has no weights for its option `quantize`; names its
            plugin.
    """
    reward, whose = chosen.build(), str(chosen.component())
    check_members(reward, whose, is_object=hasattr(chosen.config, objects.MARK))
    if isinstance(reward, nn.Module):
        reward.eval().requires_grad_(False)
    if getattr(chosen.config, "quantize", "no") == "int8":
        _quantise(reward, whose, chosen.name)
    return reward


def _quantise(reward: Any, whose: str, name: str) -> None:
    saved = quantise(reward) if isinstance(reward, nn.Module) else 0
    if not saved:
        raise GuidedCDError(
            f"{whose} has no linear layers or convolutions for int8: leave out --rewards.{name}.quantize."
        )
    console.print(f"weights  {whose} in int8: {file_size(saved)} less", markup=False)


def check_members(reward: Any, whose: str, *, is_object: bool = False) -> None:
    """Check the members of a reward that the engine reads.

    Args:
        reward: The reward.
        whose: Its description in errors.
        is_object: Whether it is an object of the calling program, which may be a plain function.

    Raises:
        GuidedCDError: It is no `nn.Module`, or has no usable `max_tokens` or `count_tokens`.
    """
    if not (is_object or isinstance(reward, nn.Module)):
        raise GuidedCDError(f"{whose} is a {type(reward).__name__}; a reward must be a torch.nn.Module.")
    reads, reference = getattr(reward, "reads", FRAMES), getattr(reward, "reference", None)
    if reads not in (FRAMES, LATENTS):
        raise GuidedCDError(f"{whose} has `reads` {reads!r}; it must be {FRAMES!r} or {LATENTS!r}.")
    if reads == LATENTS and reference not in REFERENCES:
        raise GuidedCDError(f"{whose} has `reference` {reference!r}; it must be 'prediction', 'clean' or None.")
    limit = getattr(reward, "max_tokens", None)
    if limit is None:
        raise GuidedCDError(f"{whose} has no `max_tokens`, its context length in tokens, which routes read.")
    if isinstance(limit, bool) or not isinstance(limit, Integral) or limit < 1:
        raise GuidedCDError(f"{whose} has `max_tokens` {limit!r}; it must be a whole number of tokens, at least 1.")
    if not callable(getattr(reward, "count_tokens", None)):
        raise GuidedCDError(f"{whose} has no method `count_tokens(text)`, which routes call.")
    with blame(whose):
        count = reward.count_tokens(CAPTION)
    if isinstance(count, bool) or not isinstance(count, Integral) or count < 0:
        raise GuidedCDError(f"{whose}: count_tokens returned {count!r}; it must return a whole number, at least 0.")


def call(reward: Any, frames: Tensor, captions: list[str], whose: str) -> Tensor:
    """The rewards (B,) of frames (B, k, 3, H, W).

    A result without gradient, although the frames have one, is a warning, once per reward: `rehearse` refuses a reward
    that never depends on its frames, but one that detects objects may return a constant where it detects none.

    Raises:
        GuidedCDError: The reward reads latents, returned something else than one number per video, or changed the
            frames in place.
    """
    if reads_latents(reward):
        raise GuidedCDError(f"{whose} reads the student's predicted latents, and no frames. Use it as a reward alone.")
    return _warned(_checked(reward, (frames, captions), FRAMES, whose), frames, whose)


def call_latents(reward: Any, inputs: tuple[Any, ...], whose: str) -> Tensor:
    """The rewards (b,) of a reward that reads latents, for `inputs` of `StudentPredictions`; as `call`."""
    return _warned(_checked(reward, inputs, LATENTS, whose), inputs[0].x0, whose)


def _warned(rewards: Tensor, read: Tensor, whose: str) -> Tensor:
    if _is_detached(rewards, read):
        _warn_detached(whose)
    return rewards


def _tensors(inputs: tuple[Any, ...]) -> list[Tensor]:
    """The tensors of a reward's inputs, first the one that it reads; a reward must change none of them."""
    first, reference = inputs[0], inputs[-1]
    if isinstance(first, Tensor):
        return [first]
    passes = [one for one in (first, reference) if isinstance(one, Seen)]
    return [tensor for one in passes for tensor in (one.x0, one.z, one.t, one.output)]


def _checked(reward: Any, inputs: tuple[Any, ...], what: str, whose: str) -> Tensor:
    """The rewards (B,), with or without a gradient; raises the errors of `call`."""
    tensors, count = _tensors(inputs), len(inputs[1])
    versions = [None if tensor.is_inference() else tensor._version for tensor in tensors]
    with blame(whose), process_state.restored(process_state.NUMERIC) as changes:
        rewards = reward(*inputs)
    if changes:
        raise GuidedCDError(f"{whose} changed {', '.join(changes)}, which all code shares.")
    if any(version not in (None, tensor._version) for tensor, version in zip(tensors, versions, strict=True)):
        raise GuidedCDError(f"{whose} changed its {what} in place, which other rewards read too; it must copy them.")
    if not isinstance(rewards, Tensor) or rewards.shape != (count,):
        result = f"a tensor of shape {list(rewards.shape)}" if isinstance(rewards, Tensor) else type(rewards).__name__
        raise GuidedCDError(f"{whose} returned {result} for {count} videos; it must return one score each")
    if not rewards.is_floating_point():
        raise GuidedCDError(f"{whose} returned {rewards.dtype} numbers; they must be real floats.")
    if rewards.device != tensors[0].device:
        raise GuidedCDError(f"{whose} returned a tensor on {rewards.device} for {what} on {tensors[0].device}.")
    return rewards


def _is_detached(rewards: Tensor, read: Tensor) -> bool:
    return torch.is_grad_enabled() and read.requires_grad and not rewards.requires_grad


@cache
def _warn_detached(whose: str) -> None:
    warnings.warn(
        f"{whose} returned a score that does not depend on its input: it trains nothing in such a step.", stacklevel=3
    )


@contextmanager
def drawing(module: Any, generator: torch.Generator | None) -> Iterator[None]:
    """Set the step's generator as the attribute `generator` of a reward that has one, for random preparation."""
    if not hasattr(module, "generator"):
        yield
        return
    before, module.generator = module.generator, generator
    try:
        yield
    finally:
        module.generator = before


def _caption(reward: Any, whose: str) -> str:
    """The first words of `CAPTION` that the reward can read, at least one."""
    words = CAPTION.split()
    with blame(whose):
        while len(words) > 1 and reward.count_tokens(" ".join(words)) > reward.max_tokens:
            words.pop()
    return " ".join(words)


def rehearse(
    rewards: Mapping[str, Any], run: Run, geometry: Geometry, device: torch.device, teacher: Teacher | None = None
) -> None:
    """Score one random video with every reward and take the gradient, so that a wrong reward stops the run early.

    Args:
        rewards: The modules by name; they are moved to `device`.
        run: Has the rewards' options.
        geometry: Size of the videos.
        device: Where the run trains.
        teacher: Has the noise levels for rewards that read latents, which are not rehearsed without it.

    Raises:
        GuidedCDError: A reward breaks its contract, or its result is not finite.
    """
    for name, module in rewards.items():
        whose, config = str(run.component("reward", name)), run.rewards[name]
        generator = torch.Generator().manual_seed(run.seed)
        if reads_latents(module):
            if teacher is None:
                continue
            shape, what = (1, *geometry.latent_shape), LATENTS
            values = torch.randn(shape, generator=generator).to(device)
        else:
            frames = geometry.frames if teacher is None else decoded_frames(teacher)
            count = config.count(frames, geometry.fps)
            if not 1 <= count <= frames:
                if frames < geometry.frames:
                    raise GuidedCDError(
                        f"{whose} reads {count} frames, and of a video only the first one is decoded for rewards: set "
                        f"its option frames to {frames}, or the teacher's option decode to another value than first."
                    )
                continue  # an error of the options, which the scorer explains
            shape, what = (1, count, *geometry.pixel_shape[1:]), FRAMES
            values = torch.rand(shape, generator=generator).to(device)
        read = values.clone().requires_grad_(config.weight > 0) * 1  # no leaf, so that a change in place is found
        with blame_memory(whose, "Use fewer --rewards"), torch.set_grad_enabled(config.weight > 0):
            captions = [_caption(module, whose)]
            inputs: tuple[Any, ...] = (read, captions)
            if teacher is not None and what == LATENTS:
                inputs = _on_noise(read, generator, teacher).inputs([0], captions, module, teacher)
            with drawing(module, reward_generator(run.seed, 0)):
                value = _checked(module.to(device), inputs, what, whose)
            _check_rehearsed(value, read, values, config.weight > 0, what, whose)


def _on_noise(latents: Tensor, generator: torch.Generator, teacher: Teacher) -> StudentPredictions:
    """Predicted latents (1, C, F, H, W) in the middle of the schedule, of a clip of noise."""
    z, clips, outputs = (torch.randn(latents.shape, generator=generator).to(latents.device) for _ in range(3))
    t = torch.full((1,), len(teacher.schedule) // 2, device=latents.device)
    return StudentPredictions(latents=latents, routes=[], z=z, t=t, clips=clips, outputs=outputs)


def _check_rehearsed(value: Tensor, read: Tensor, before: Tensor, trains: bool, what: str, whose: str) -> None:
    """Check the reward of random input `read`, and its gradient if it trains."""
    if not torch.equal(read, before):
        raise GuidedCDError(f"{whose} changed its {what}, which other rewards read too; it must copy them.")
    if not value.isfinite().all():
        raise GuidedCDError(f"{whose} gave {value.tolist()[0]} for random {what}; a reward must be finite.")
    if _is_detached(value, read):
        raise GuidedCDError(
            f"{whose} does not depend on its {what}, so that it trains nothing: something detached it. "
            f"If it returns a constant where it detects nothing, add `+ 0 * {what}.sum()` to it. "
            "A reward of weight 0 is only logged and needs no gradient."
        )
    if trains:
        (gradient,) = torch.autograd.grad(value.sum(), read, allow_unused=True)
        if gradient is None:
            raise GuidedCDError(f"{whose} has no gradient with respect to its {what}: something detached it.")
        if not gradient.isfinite().all():
            raise GuidedCDError(f"{whose} has a gradient that is not finite for random {what}.")
