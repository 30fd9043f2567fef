"""The contract of rewards: what the engine reads of one, checked before the store is computed.

Legend: k chosen frames, H/W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from guidedcd.config.run import Run
from guidedcd.data.geometry import Geometry
from guidedcd.devices import blame_memory
from guidedcd.errors import GuidedCDError
from guidedcd.plugins import objects
from guidedcd.plugins.registry import blame

CAPTION = "a ball rolls to the left"


def build_rewards(run: Run) -> dict[str, Any]:
    """The run's rewards by name, frozen and in eval mode.

    Raises:
        GuidedCDError: One lacks a member that the engine reads; names its plugin.
    """
    modules = run.build("reward")
    for name, module in modules.items():
        is_object = hasattr(run.rewards[name], objects.MARK)
        check_members(module, str(run.component("reward", name)), is_object=is_object)
        if isinstance(module, nn.Module):
            module.eval().requires_grad_(False)
    return modules


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
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise GuidedCDError(f"{whose} has `max_tokens` {limit!r}; it must be a whole number of tokens, at least 1.")
    if not callable(getattr(reward, "count_tokens", None)):
        raise GuidedCDError(f"{whose} has no method `count_tokens(text)`, which routes call.")
    with blame(whose):
        count = reward.count_tokens(CAPTION)
    if isinstance(count, bool) or not isinstance(count, int):
        raise GuidedCDError(f"{whose}: count_tokens returned {count!r}; it must return a whole number.")


def call(reward: Any, frames: Tensor, captions: list[str], whose: str) -> Tensor:
    """The rewards (B,) of frames (B, k, 3, H, W).

    Raises:
        GuidedCDError: The reward returned something else than one number per video, changed the frames in place, or
            cannot train because its result has no gradient although the frames have one.
    """
    version = None if frames.is_inference() else frames._version
    with blame(whose):
        rewards = reward(frames, captions)
    if version is not None and frames._version != version:
        raise GuidedCDError(f"{whose} changed its frames in place, which other rewards read too; it must copy them.")
    if not isinstance(rewards, Tensor) or rewards.shape != (len(captions),):
        result = f"a tensor of shape {list(rewards.shape)}" if isinstance(rewards, Tensor) else type(rewards).__name__
        raise GuidedCDError(f"{whose} returned {result} for {len(captions)} videos; it must return one score each")
    if torch.is_grad_enabled() and frames.requires_grad and not rewards.requires_grad:
        raise GuidedCDError(
            f"{whose} does not depend on its frames, so that it trains nothing: something detached it. "
            "A reward of weight 0 is only logged and needs no gradient."
        )
    return rewards


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
        if config.frames > geometry.frames:
            continue  # an error of the options, which the scorer explains
        generator = torch.Generator().manual_seed(run.seed)
        shape = (1, config.frames, *geometry.pixel_shape[1:])
        pixels = torch.rand(shape, generator=generator).to(device)
        frames = pixels.clone().requires_grad_(config.weight > 0) * 1  # no leaf, so that a change in place is found
        with blame_memory(whose, "Use fewer --rewards"), torch.set_grad_enabled(config.weight > 0):
            value = call(module.to(device), frames, [CAPTION], whose)
            if not torch.equal(frames, pixels):
                raise GuidedCDError(f"{whose} changed its frames, which other rewards read too; it must copy them.")
            if not value.isfinite().all():
                raise GuidedCDError(f"{whose} gave {value.tolist()[0]} for random frames; a reward must be finite.")
            if config.weight > 0:
                (gradient,) = torch.autograd.grad(value.sum(), frames, allow_unused=True)
                if gradient is None:
                    raise GuidedCDError(f"{whose} has no gradient with respect to its frames: something detached it.")
                if not gradient.isfinite().all():
                    raise GuidedCDError(f"{whose} has a gradient that is not finite for random frames.")
