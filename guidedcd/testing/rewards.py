"""The rules of rewards. Legend: B batch, F frames."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from numbers import Integral
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

import torch
from torch import Tensor

from guidedcd.rewards.latents import StudentPredictions, reads_latents
from guidedcd.testing.energies import SCALES
from guidedcd.testing.helpers import CAPTIONS, T, frees_memory, is_batch, random, same_in_threads, unchanged

if TYPE_CHECKING:
    from guidedcd.testing.checked_component import CheckedComponent


def video(checked: CheckedComponent, batch: int = 2) -> Tensor:
    """What the reward receives for one batch.

    Frames (batch, F, 3, 32, 40) in [0, 1], as many as it receives of 16 frames at 8 per second. A reward that reads
    latents receives those of a tiny teacher, in a size for which it has a gradient if it has one at all.
    """
    if reads_latents(checked.built):
        latents = random((batch, *checked.teacher.geometry.latent_shape), 3)
        for scale in (*SCALES, 0.05):
            scaled = (scale * latents).requires_grad_()
            score = rewards(checked, scaled)
            if isinstance(score, Tensor) and score.requires_grad:
                (gradient,) = torch.autograd.grad(score[0], scaled, allow_unused=True)
                if gradient is not None and gradient.abs().max() > 0:
                    return scale * latents
        return latents
    return random((batch, checked.options.count(16, 8.0), 3, 32, 40), 3).mul(0.2).add(0.5).clamp(0, 1)


def rewards(checked: CheckedComponent, frames: Tensor, captions: Sequence[str] = CAPTIONS) -> Any:
    """What the reward returns for frames or latents, see `video`, and their captions."""
    reward, count = checked.built, len(frames)
    if not reads_latents(reward):
        return reward(frames, list(captions))
    # The same for every sample, so that one of them alone has the same reference as in a batch.
    z, clips, outputs = (0.1 * random((1, *frames.shape[1:]), seed).expand_as(frames) for seed in (11, 12, 13))
    t = torch.full((count,), T)
    source = StudentPredictions(latents=frames, routes=[], z=z, t=t, clips=clips, outputs=outputs)
    return reward(*source.inputs(range(count), captions, reward, checked.teacher))


def reward_is_one_number_per_sample(checked: CheckedComponent) -> None:
    """It returns finite rewards (B,), draws no random numbers and leaves torch's defaults alone."""
    frames = video(checked)
    with unchanged("the reward"):
        is_batch(rewards(checked, frames), 2, "the reward")


def reward_has_a_gradient(checked: CheckedComponent) -> None:
    """Its gradient with respect to the frames is finite, not zero, and stays within the sample."""
    frames = video(checked).requires_grad_()
    score = rewards(checked, frames)
    assert score.requires_grad, "the reward does not depend on the frames: something detached it"
    (gradient,) = torch.autograd.grad(score[0], frames, allow_unused=True)
    assert gradient is not None, "the reward does not depend on the frames: something detached it"
    assert torch.isfinite(gradient).all(), "the reward's gradient is not finite"
    assert gradient[0].abs().max() > 0, "the reward's gradient is zero"
    assert gradient[1].abs().max() == 0, "the reward of one sample depends on another sample of the batch"


def reward_treats_samples_alone(checked: CheckedComponent) -> None:
    """The reward of a sample does not depend on the rest of the batch."""
    frames = video(checked)
    with torch.no_grad():
        both = rewards(checked, frames)
        alone = torch.cat([rewards(checked, frames[i : i + 1], CAPTIONS[i : i + 1]) for i in range(2)])
    assert torch.allclose(both, alone, rtol=1e-3, atol=1e-4), f"{both.tolist()} in a batch, {alone.tolist()} alone"


def reward_is_frozen(checked: CheckedComponent) -> None:
    """It is an nn.Module without trainable parameters, and without layers that behave as in training."""
    module = checked.built
    assert isinstance(module, torch.nn.Module), f"a reward is an nn.Module, not {type(module).__name__}"
    random_layers = (torch.nn.modules.dropout._DropoutNd, torch.nn.modules.batchnorm._NormBase)
    trains = [name for name, layer in module.named_modules() if layer.training and isinstance(layer, random_layers)]
    assert not trains, f"call .eval(): {trains[0]} makes the reward random"
    trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    assert not trained, f"call .requires_grad_(False): gradients would accumulate in {trained[:3]}"


def reward_reads_text(checked: CheckedComponent) -> None:
    """It counts the tokens of a text, and states its context length."""
    short, long = (checked.built.count_tokens(text) for text in ("a ball", "a ball " * 200))
    assert 0 < short < long, f"count_tokens returned {short} for two words and {long} for four hundred"
    limit = checked.built.max_tokens
    assert isinstance(limit, Integral) and int(limit) > 0, f"max_tokens is {limit!r}"


def reward_leaves_its_frames(checked: CheckedComponent) -> None:
    """It does not change its frames, which other rewards read too."""
    frames = video(checked)
    before = frames.clone()
    with torch.no_grad():
        rewards(checked, frames)
    assert torch.equal(frames, before), "it changed its frames in place: work on a copy"


def reward_reads_up_to_its_limit(checked: CheckedComponent) -> None:
    """A reward that reads captions reads all words of one that has at most `max_tokens` tokens."""
    reward, limit = checked.built, checked.built.max_tokens
    if limit > LONGEST:
        return  # a function that reads no text in a context
    words = [word for word in range(1, limit + 1) if reward.count_tokens(" ".join(["ball"] * word)) <= limit]
    if not words or words[-1] < 2:
        return
    captions = [" ".join([*["ball"] * (words[-1] - 1), last]) for last in ("ball", "boat")]
    if max(reward.count_tokens(caption) for caption in captions) > limit:
        return
    frames = video(checked, 1)
    with torch.no_grad():
        first, second = (rewards(checked, frames, [caption]) for caption in ("ball", "boat"))
        if torch.equal(first, second):
            return  # it does not depend on captions, or its tokenizer has neither word
        one, other = (rewards(checked, frames, [caption]) for caption in captions)
    assert not torch.equal(one, other), (
        f"max_tokens is {limit}, but the last word of a caption of {reward.count_tokens(captions[0])} tokens has no "
        "effect: state the length that it reads"
    )


def reward_is_safe_in_threads(checked: CheckedComponent) -> None:
    """Calls from several threads do not disturb each other."""
    frames = video(checked, 4)

    def reward(row: int) -> Tensor:
        with torch.no_grad():
            return rewards(checked, frames[row : row + 1], CAPTIONS[:1])

    assert same_in_threads(reward, range(4)), "calls from several threads disturb each other: keep no state in self"


def reward_follows_the_device(checked: CheckedComponent) -> None:
    """It creates its tensors on the device of the frames; it is tried on the meta device, as in a plan."""
    if reads_latents(checked.built):
        return  # the noise levels of the tiny teacher are on one device
    if sum(parameter.numel() for parameter in checked.built.parameters()) > LARGE:
        raise SkipTest("it is too large to be copied in a check")
    try:
        reward = deepcopy(checked.built).to("meta")
        with torch.no_grad():
            value = reward(video(checked).to("meta"), CAPTIONS)
    except RuntimeError as error:
        if "device" in str(error) and "item" not in str(error):
            raise AssertionError(f"it mixes devices: create tensors on the device of the frames ({error})") from error
        return  # it reads values of tensors, which have none on this device
    except (NotImplementedError, TypeError, ValueError):  # `numpy()` of such a tensor; a member that cannot be copied
        return
    assert value.device.type == "meta", f"the rewards are on {value.device}, the frames on another device"


def reward_frees_memory(checked: CheckedComponent) -> None:
    """It keeps no tensor of one call after another."""
    frames = video(checked)
    frees_memory(lambda: rewards(checked, frames.clone().requires_grad_()), "the reward")


def reward_reads_the_order_of_frames(checked: CheckedComponent) -> None:
    """A reward that states `reads_motion` has another value for frames in another order."""
    if not getattr(checked.built, "reads_motion", False):
        return
    frames, axis = video(checked), 2 if reads_latents(checked.built) else 1
    assert frames.shape[axis] > 1, "it states `reads_motion`, but its option `frames` is 1"
    with torch.no_grad():
        one, two = rewards(checked, frames), rewards(checked, frames.roll(1, dims=axis))
    assert not torch.allclose(one, two, rtol=1e-5), "it states `reads_motion`, but the order of frames has no effect"


LARGE = 50_000_000
"""Parameters above which a rule that copies the network is skipped."""

LONGEST = 4096
"""Context lengths above this are not filled in a check."""

RULES = [
    reward_is_one_number_per_sample,
    reward_has_a_gradient,
    reward_treats_samples_alone,
    reward_is_frozen,
    reward_reads_text,
    reward_leaves_its_frames,
    reward_reads_up_to_its_limit,
    reward_is_safe_in_threads,
    reward_follows_the_device,
    reward_frees_memory,
    reward_reads_the_order_of_frames,
]
