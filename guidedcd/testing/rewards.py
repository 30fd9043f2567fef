"""The rules of rewards. Legend: B batch, F frames."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guidedcd.testing.helpers import CAPTIONS, is_batch, random, same_in_threads, unchanged

if TYPE_CHECKING:
    from guidedcd.testing.checked_component import CheckedComponent


def video(checked: CheckedComponent, batch: int = 2) -> Tensor:
    """Frames (batch, F, 3, 32, 40) in [0, 1], with F from the reward's option `frames`."""
    return random((batch, checked.options.frames, 3, 32, 40), 3).mul(0.2).add(0.5).clamp(0, 1)


def reward_is_one_number_per_sample(checked: CheckedComponent) -> None:
    """It returns finite rewards (B,), and changes neither the global random state nor the gradient mode."""
    frames = video(checked)
    with unchanged("the reward"):
        is_batch(checked.built(frames, CAPTIONS), 2, "the reward")


def reward_has_a_gradient(checked: CheckedComponent) -> None:
    """Its gradient with respect to the frames is finite, not zero, and stays within the sample."""
    frames = video(checked).requires_grad_()
    score = checked.built(frames, CAPTIONS)
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
        both = checked.built(frames, CAPTIONS)
        alone = torch.cat([checked.built(frames[i : i + 1], CAPTIONS[i : i + 1]) for i in range(2)])
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
        checked.built(frames, CAPTIONS)
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
        first, second = (reward(frames, [caption]) for caption in ("ball", "boat"))
        if torch.equal(first, second):
            return  # it does not depend on captions, or its tokenizer knows neither word
        one, other = (reward(frames, [caption]) for caption in captions)
    assert not torch.equal(one, other), (
        f"max_tokens is {limit}, but the last word of a caption of {reward.count_tokens(captions[0])} tokens has no "
        "effect: state the length that it reads"
    )


def reward_is_safe_in_threads(checked: CheckedComponent) -> None:
    """Calls from several threads do not disturb each other."""
    frames = video(checked, 4)

    def reward(row: int) -> Tensor:
        with torch.no_grad():
            return checked.built(frames[row : row + 1], CAPTIONS[:1])

    assert same_in_threads(reward, range(4)), "calls from several threads disturb each other: keep no state in self"


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
]
