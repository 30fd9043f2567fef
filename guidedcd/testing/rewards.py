"""The rules of rewards. Legend: B batch, F frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guidedcd.testing.helpers import CAPTIONS, is_batch, random, unchanged

if TYPE_CHECKING:
    from guidedcd.testing.subject import Subject


def video(subject: Subject, batch: int = 2) -> Tensor:
    """Frames (batch, F, 3, 32, 40) in [0, 1], with F from the reward's option `frames`."""
    return random((batch, subject.options.frames, 3, 32, 40), 3).mul(0.2).add(0.5).clamp(0, 1)


def reward_is_one_number_per_sample(subject: Subject) -> None:
    """It returns finite rewards (B,), and changes neither the global random state nor the gradient mode."""
    frames = video(subject)
    with unchanged("the reward"):
        is_batch(subject.built(frames, CAPTIONS), 2, "the reward")


def reward_has_a_gradient(subject: Subject) -> None:
    """Its gradient with respect to the frames is finite, not zero, and stays within the sample."""
    frames = video(subject).requires_grad_()
    score = subject.built(frames, CAPTIONS)
    assert score.requires_grad, "the reward does not depend on the frames: something detached it"
    (gradient,) = torch.autograd.grad(score[0], frames, allow_unused=True)
    assert gradient is not None, "the reward does not depend on the frames: something detached it"
    assert torch.isfinite(gradient).all(), "the reward's gradient is not finite"
    assert gradient[0].abs().max() > 0, "the reward's gradient is zero"
    assert gradient[1].abs().max() == 0, "the reward of one sample depends on another sample of the batch"


def reward_treats_samples_alone(subject: Subject) -> None:
    """The reward of a sample does not depend on the rest of the batch."""
    frames = video(subject)
    with torch.no_grad():
        both = subject.built(frames, CAPTIONS)
        alone = torch.cat([subject.built(frames[i : i + 1], CAPTIONS[i : i + 1]) for i in range(2)])
    assert torch.allclose(both, alone, rtol=1e-3, atol=1e-4), f"{both.tolist()} in a batch, {alone.tolist()} alone"


def reward_is_frozen(subject: Subject) -> None:
    """It is an nn.Module in eval mode without trainable parameters."""
    module = subject.built
    assert isinstance(module, torch.nn.Module), f"a reward is an nn.Module, not {type(module).__name__}"
    assert not module.training, "call .eval(): dropout would make the reward random"
    trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    assert not trained, f"call .requires_grad_(False): gradients would accumulate in {trained[:3]}"


def reward_reads_text(subject: Subject) -> None:
    """It counts the tokens of a text, and states its context length."""
    short, long = (subject.built.count_tokens(text) for text in ("a ball", "a ball " * 200))
    assert 0 < short < long, f"count_tokens returned {short} for two words and {long} for four hundred"
    limit = subject.built.max_tokens
    assert isinstance(limit, int) and limit > 0, f"max_tokens is {limit!r}"


RULES = [
    reward_is_one_number_per_sample,
    reward_has_a_gradient,
    reward_treats_samples_alone,
    reward_is_frozen,
    reward_reads_text,
]
