"""Rewards that are wrong in one way each: what a run states about them, and the check of the kit that fails."""

from __future__ import annotations

import pytest
import torch
from toy_plugin import make

from guidedcd.data.geometry import Geometry
from guidedcd.errors import GuidedCDError
from guidedcd.rewards.contract import build_rewards, rehearse
from guidedcd.testing import checks

pytestmark = pytest.mark.slow

PLUGIN = """
import torch
from guidedcd import RewardConfig, hookimpl

class Odd(torch.nn.Module):
    {members}
    def __init__(self, config):
        super().__init__()
        {init}
    def count_tokens(self, text):
        {count}
    def forward(self, video, captions):
        {body}

@hookimpl
def register_rewards(register): register("odd", "acme_odd:Odd", config=RewardConfig)
"""
VALUE = "video.flatten(1).mean(1)"
GEOMETRY = Geometry(frames=3, height=8, width=8, fps=8, compression=2)
WRONG = {
    "one number for the batch": (f"return {VALUE}.mean()", r"tensor of shape \[\] for 1 videos"),
    "a column": (f"return {VALUE}[:, None]", r"tensor of shape \[1, 1\] for 1 videos"),
    "a list": (f"return {VALUE}.tolist()", "returned list"),
    "a tuple": (f"return ({VALUE},)", "returned tuple"),
    "a dict": (f"return {{'score': {VALUE}}}", "returned dict"),
    "nothing": ("video", "returned NoneType"),
    "detached": (f"return {VALUE}.detach()", "does not depend on its frames"),
    "gradients turned off": (f"torch.set_grad_enabled(False); return {VALUE}", "changed torch's gradient mode"),
    "sys.exit": ("raise SystemExit(0)", "ended the program: SystemExit: 0"),
    "no_grad": (f"\n        with torch.no_grad(): return {VALUE}", "does not depend on its frames"),
    "whole numbers": (f"return {VALUE}.long()", "returned torch.int64 numbers; they must be real floats"),
    "complex numbers": (f"return {VALUE}.to(torch.complex64)", "returned torch.complex64 numbers"),
    "not finite": (f"return {VALUE} / 0", "gave inf for random frames; a reward must be finite"),
    "not a number": (f"return {VALUE} * float('nan')", "gave nan for random frames"),
    "a gradient that is not finite": ("return (video * 0).flatten(1).sum(1).sqrt()", "a gradient that is not finite"),
    "frames changed in place": (f"video.clamp_(0.2, 0.3); return {VALUE}", "changed its frames"),
    "another default dtype": (
        f"torch.set_default_dtype(torch.float64); return {VALUE}",
        "changed torch's default dtype",
    ),
    "another seed": (f"torch.manual_seed(12345); return {VALUE}", "changed torch's seed"),
    "another device": (f"return {VALUE}.to('meta')", "returned a tensor on meta for frames on cpu"),
}
MEMBERS = {
    "no context length": ({"members": "x = 1"}, "no `max_tokens`"),
    "None as context length": ({"members": "max_tokens = None"}, "no `max_tokens`"),
    "a context length of 0": ({"members": "max_tokens = 0"}, "`max_tokens` 0; it must be a whole number"),
    "True as context length": ({"members": "max_tokens = True"}, "`max_tokens` True"),
    "half a token": ({"count": "return 1.5"}, "count_tokens returned 1.5"),
    "fewer tokens than none": ({"count": "return -5"}, "count_tokens returned -5"),
    "sys.exit": ({"init": "raise SystemExit(0)"}, "ended the program: SystemExit: 0"),
    "os._exit": ({"init": "import os; os._exit(4)"}, r"ended the program: .*os._exit\(4\)"),
}
RAISING = {
    "the constructor": ({"init": "open('/nowhere/weights')"}, FileNotFoundError),
    "the tokenizer": ({"count": "raise KeyError(text)"}, KeyError),
    "the forward pass": ({"body": "raise ValueError('odd')"}, ValueError),
}


@pytest.fixture(autouse=True)
def only_it(monkeypatch):
    """Leave out the plugins of guidedcd, which take time."""
    monkeypatch.setenv("GUIDEDCD_BLOCK", "guidedcd")


def rehearsed(install, *, body=f"return {VALUE}", members="max_tokens = 8", init="...", count="return 3"):
    """Score one video with the plugin's reward, as a run does before the store is computed."""
    install("acme-odd", PLUGIN.format(body=body, members=members, init=init, count=count))
    run = make(replace=["rewards"], rewards={"odd": {}})
    rehearse(build_rewards(run), run, GEOMETRY, torch.device("cpu"))


@pytest.mark.parametrize(("body", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_result_stops_the_run_before_the_store(toy, install, body, message):
    """One sentence names the reward, its plugin and the fault."""
    with pytest.raises(GuidedCDError, match=f"^reward 'odd' of acme-odd/acme_odd .*{message}"):
        rehearsed(install, body=body)

    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(("members", "message"), MEMBERS.values(), ids=MEMBERS)
def test_a_wrong_member_is_one_sentence(toy, install, members, message):
    """What routes and the engine read is checked when the reward is built."""
    with pytest.raises(GuidedCDError, match=f"^reward 'odd' of acme-odd/acme_odd.* {message}"):
        rehearsed(install, **members)


@pytest.mark.parametrize(("members", "error"), RAISING.values(), ids=RAISING)
def test_an_exception_keeps_its_type_and_names_the_plugin(toy, install, members, error):
    """The author needs the traceback, the user the name."""
    with pytest.raises(error) as caught:
        rehearsed(install, **members)

    assert any("reward 'odd' of acme-odd/acme_odd" in note for note in caught.value.__notes__)


def test_the_right_reward_is_rehearsed(toy, install):
    """The same plugin without a fault passes, also with rewards in another float dtype."""
    rehearsed(install, body=f"return {VALUE}.double()")


KIT = {
    "whole numbers": (f"return {VALUE}.long()", "reward_is_one_number_per_sample", "real floats"),
    "keeps its frames": (
        f"self.all = [*getattr(self, 'all', []), video.clone()]; return {VALUE}",
        "reward_frees_memory",
        "memory grows with every step",
    ),
    "blind to the order of frames": (f"return {VALUE}", "reward_reads_the_order_of_frames", "has no effect"),
    "a tensor on the CPU": (
        "return (video * torch.ones(video.shape)).flatten(1).mean(1)",
        "reward_follows_the_device",
        "it mixes devices",
    ),
    "counts no tokens": (f"return {VALUE}", "reward_reads_text", "count_tokens returned 3 for two words"),
}


@pytest.mark.parametrize(("body", "rule", "message"), KIT.values(), ids=KIT)
def test_the_kit_finds_the_fault(install, body, rule, message):
    """One check fails with a sentence."""
    members = "max_tokens, reads_motion = 8, True"
    install("acme-odd", PLUGIN.format(body=body, members=members, init="...", count="return 3"))
    (check,) = [check for check in checks("reward", "odd") if check.rule.__name__ == rule]

    with pytest.raises(AssertionError, match=message):
        check()
