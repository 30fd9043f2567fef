"""The contract of rewards holds in a run, and every error names the plugin of the reward."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy_plugin import make

from guidedcd.data.geometry import Geometry
from guidedcd.errors import GuidedCDError
from guidedcd.rewards.contract import build_rewards, call, check_members, rehearse

PLUGIN = """
import torch
from guidedcd import RewardConfig, hookimpl

class Odd(torch.nn.Module):
    max_tokens = 8
    def __init__(self, config):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
    def count_tokens(self, text): return len(text.split())
    def forward(self, video, captions):
        {body}

@hookimpl
def register_rewards(register): register("odd", "acme_odd:Odd", config=RewardConfig)
"""
GEOMETRY = Geometry(frames=3, height=8, width=8, fps=8, compression=2)
WRONG = {
    "changes": ("video.mul_(2); return video.flatten(1).mean(1)", "changed its frames"),
    "changes-unseen": ("video.data.mul_(2); return video.flatten(1).mean(1)", "changed its frames"),
    "constant": ("return torch.zeros(1)", r"add `\+ 0 \* frames.sum\(\)`"),
    "detached": ("return video.detach().flatten(1).mean(1)", "does not depend on its frames"),
    "parameter-only": ("return self.weight.expand(1)", "does not depend on its frames"),
    "unrelated": ("return torch.zeros(1, requires_grad=True) + 1", "no gradient with respect to its frames"),
    "not-finite": ("return video.flatten(1).mean(1) * float('nan')", "a reward must be finite"),
    "gradient": ("return (video * 0).flatten(1).sum(1).sqrt()", "gradient that is not finite"),
    "scalar": ("return video.mean()", r"tensor of shape \[\] for 1 videos"),
    "list": ("return [1.0]", "returned list"),
}


@pytest.mark.parametrize(("body", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_reward_stops_the_run_before_the_store(toy, install, body, message):
    """One random video is scored before anything is computed; the error names the reward and its plugin."""
    install("acme-odd", PLUGIN.format(body=body))
    run = make(replace=["rewards"], rewards={"odd": {"frames": 2}})

    with pytest.raises(GuidedCDError, match=rf"reward 'odd' of acme-odd/acme_odd .*{message}"):
        rehearse(build_rewards(run), run, GEOMETRY, torch.device("cpu"))


def test_a_reward_is_frozen_by_the_engine(toy, install):
    """A plugin that forgets `.eval()` and `.requires_grad_(False)` gets both."""
    install("acme-odd", PLUGIN.format(body="return video.flatten(1).mean(1)"))
    run = make(replace=["rewards"], rewards={"odd": {"frames": 2}})

    (reward,) = build_rewards(run).values()
    rehearse({"odd": reward}, run, GEOMETRY, torch.device("cpu"))

    assert not reward.training and not reward.weight.requires_grad


def test_the_rehearsal_keeps_the_promises_of_training(toy, install):
    """`generator` is set, and no caption has more than `max_tokens` tokens; both counts may be NumPy integers."""
    body = "assert len(captions[0].split()) == 3; noise = torch.rand(1, generator=self.generator)"
    code = PLUGIN.format(body=f"{body}; assert self.generator; return video.flatten(1).mean(1) + noise")
    code = code.replace("max_tokens = 8", "max_tokens, generator = numpy.int64(3), None").replace(
        "return len(text.split())", "return numpy.int64(len(text.split()))"
    )
    install("acme-odd", "import numpy\n" + code)
    run = make(replace=["rewards"], rewards={"odd": {"frames": 2}})

    (reward,) = build_rewards(run).values()
    rehearse({"odd": reward}, run, GEOMETRY, torch.device("cpu"))

    assert reward.generator is None


def test_a_constant_score_in_training_is_one_warning():
    """A reward that detects nothing in one batch does not end the run."""
    frames = torch.rand(1, 1, 3, 4, 4, requires_grad=True)

    with pytest.warns(UserWarning, match="reward 'constant' returned a score that does not depend") as caught:
        for _ in range(2):
            call(lambda video, captions: torch.zeros(1), frames, ["a"], "reward 'constant'")

    assert len(caught) == 1


class Reader(nn.Module):
    """A reward with any `max_tokens`."""

    def __init__(self, **members) -> None:
        super().__init__()
        for name, value in members.items():
            setattr(self, name, value)


MEMBERS = {
    "no-module": (object(), "is a object; a reward must be a torch.nn.Module"),
    "no-limit": (Reader(count_tokens=len), "no `max_tokens`"),
    "limit": (Reader(max_tokens=0.5, count_tokens=len), "`max_tokens` 0.5"),
    "no-count": (Reader(max_tokens=5), "no method `count_tokens"),
    "count": (Reader(max_tokens=5, count_tokens=str), "count_tokens returned 'a ball"),
}


@pytest.mark.parametrize(("reward", "message"), MEMBERS.values(), ids=MEMBERS)
def test_a_missing_member_is_one_sentence(reward, message):
    """What the engine reads of a reward is checked when it is built."""
    with pytest.raises(GuidedCDError, match=f"reward 'x' of acme.*{message}"):
        check_members(reward, "reward 'x' of acme")


def test_a_change_of_frames_never_reaches_another_reward():
    """The version counter of shared frames finds a change in place also without gradients."""
    frames = torch.rand(2, 1, 3, 4, 4)

    with torch.no_grad(), pytest.raises(GuidedCDError, match="changed its frames in place"):
        call(lambda video, captions: video.clamp_(0.5).flatten(1).mean(1), frames, ["a", "b"], "reward 'x'")
