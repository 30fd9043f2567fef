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

from guidedcd.config.kinds import Chosen
from guidedcd.config.run import Run
from guidedcd.data.geometry import Geometry
from guidedcd.devices import blame_memory
from guidedcd.diffusion.randomness import reward_generator
from guidedcd.errors import GuidedCDError
from guidedcd.plugins import objects, process_state
from guidedcd.plugins.registry import blame

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
        GuidedCDError: It lacks a member that the engine reads; names its plugin.
    """
    reward = chosen.build()
    check_members(reward, str(chosen.component()), is_object=hasattr(chosen.config, objects.MARK))
    if isinstance(reward, nn.Module):
        reward.eval().requires_grad_(False)
    return reward


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
        GuidedCDError: The reward returned something else than one number per video, or changed the frames in place.
    """
    rewards = _checked(reward, frames, captions, whose)
    if _is_detached(rewards, frames):
        _warn_detached(whose)
    return rewards


def _checked(reward: Any, frames: Tensor, captions: list[str], whose: str) -> Tensor:
    """The rewards (B,), with or without a gradient; raises the errors of `call`."""
    version = None if frames.is_inference() else frames._version
    with blame(whose), process_state.restored(process_state.NUMERIC) as changes:
        rewards = reward(frames, captions)
    if changes:
        raise GuidedCDError(f"{whose} changed {', '.join(changes)}, which all code shares.")
    if version is not None and frames._version != version:
        raise GuidedCDError(f"{whose} changed its frames in place, which other rewards read too; it must copy them.")
    if not isinstance(rewards, Tensor) or rewards.shape != (len(captions),):
        result = f"a tensor of shape {list(rewards.shape)}" if isinstance(rewards, Tensor) else type(rewards).__name__
        raise GuidedCDError(f"{whose} returned {result} for {len(captions)} videos; it must return one score each")
    if not rewards.is_floating_point():
        raise GuidedCDError(f"{whose} returned {rewards.dtype} numbers; they must be real floats.")
    if rewards.device != frames.device:
        raise GuidedCDError(f"{whose} returned a tensor on {rewards.device} for frames on {frames.device}.")
    return rewards


def _is_detached(rewards: Tensor, frames: Tensor) -> bool:
    return torch.is_grad_enabled() and frames.requires_grad and not rewards.requires_grad


@cache
def _warn_detached(whose: str) -> None:
    warnings.warn(
        f"{whose} returned a score that does not depend on its frames: it trains nothing in such a step.", stacklevel=3
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


def rehearse(rewards: Mapping[str, Any], run: Run, geometry: Geometry, device: torch.device) -> None:
    """Score one random video with every reward and take the gradient, so that a wrong reward stops the run early.

    Args:
        rewards: The modules by name; they are moved to `device`.
        run: Has the rewards' options.
        geometry: Size of the videos.
        device: Where the run trains.

    Raises:
        GuidedCDError: A reward breaks its contract, or its result is not finite.
    """
    for name, module in rewards.items():
        whose, config = str(run.component("reward", name)), run.rewards[name]
        count = config.count(geometry.frames, geometry.fps)
        if not 1 <= count <= geometry.frames:
            continue  # an error of the options, which the scorer explains
        generator = torch.Generator().manual_seed(run.seed)
        shape = (1, count, *geometry.pixel_shape[1:])
        pixels = torch.rand(shape, generator=generator).to(device)
        frames = pixels.clone().requires_grad_(config.weight > 0) * 1  # no leaf, so that a change in place is found
        with blame_memory(whose, "Use fewer --rewards"), torch.set_grad_enabled(config.weight > 0):
            with drawing(module, reward_generator(run.seed, 0)):
                value = _checked(module.to(device), frames, [_caption(module, whose)], whose)
            if not torch.equal(frames, pixels):
                raise GuidedCDError(f"{whose} changed its frames, which other rewards read too; it must copy them.")
            if not value.isfinite().all():
                raise GuidedCDError(f"{whose} gave {value.tolist()[0]} for random frames; a reward must be finite.")
            if _is_detached(value, frames):
                raise GuidedCDError(
                    f"{whose} does not depend on its frames, so that it trains nothing: something detached it. "
                    "If it returns a constant where it detects nothing, add `+ 0 * frames.sum()` to it. "
                    "A reward of weight 0 is only logged and needs no gradient."
                )
            if config.weight > 0:
                (gradient,) = torch.autograd.grad(value.sum(), frames, allow_unused=True)
                if gradient is None:
                    raise GuidedCDError(f"{whose} has no gradient with respect to its frames: something detached it.")
                if not gradient.isfinite().all():
                    raise GuidedCDError(f"{whose} has a gradient that is not finite for random frames.")
