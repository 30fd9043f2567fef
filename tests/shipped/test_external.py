"""The reward `external`: a reward of another environment, beside the same reward in this process."""

from __future__ import annotations

import copy
import json
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
from clean_environment import clean_environment
from guidedcd_external import ExternalConfig
from guidedcd_external.reward import External
from lying_python import lying_python
from short_training import TWO_PROCESSES, launch, trained
from toy_plugin import make

from guidedcd.config.kinds import Chosen
from guidedcd.config.structure import changed
from guidedcd.errors import GuidedCDError
from guidedcd.planning.skeletons import outline
from guidedcd.plugins.registry import load_plugins
from guidedcd.testing import checks_of

BRIGHTNESS = """
import torch

def score(frames, captions):
    lengths = torch.tensor([float(len(caption)) for caption in captions], device=frames.device)
    return frames.flatten(1).mean(1) * lengths

score.max_tokens = 8
score.count_tokens = len
"""
"""The formula of the reward `toy`."""


@pytest.fixture(scope="module")
def function(tmp_path_factory) -> str:
    """The reward of a file."""
    path = tmp_path_factory.mktemp("other") / "brightness.py"
    path.write_text(BRIGHTNESS)
    return f"{path}:score"


def external(function: str, python: str = sys.executable, **options) -> External:
    """The reward in a process of its own."""
    return External(ExternalConfig(function=function, python=python, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "reward 'external' needs a function: write external:MODULE:ATTRIBUTE or"),
        ({"function": "a:b"}, "reward 'external:a:b' needs the Python of its environment: "),
        ({"function": "a:b", "python": "/nowhere/python"}, "there is no program /nowhere/python; state the Python"),
    ],
)
def test_missing_options_are_one_sentence(options, message):
    """What the other environment is must be stated."""
    with pytest.raises(GuidedCDError, match=message):
        External(ExternalConfig(**options))


@pytest.mark.parametrize("options", ["[1]", "{", "7"])
def test_options_are_an_object(options):
    """Options that are no JSON object are refused."""
    with pytest.raises(ValueError, match="must be a JSON object"):
        ExternalConfig(options=options)


SCORES = {
    "shape": ("tensors((2, 1))", r"returned a tensor of shape \[2, 1\] for 2 videos; it must return one score each"),
    "too few": ("tensors((1,))", r"returned a tensor of shape \[1\] for 2 videos"),
    "dtype": ("tensors(dtype='int32')", "returned scores of type torch.int32; they must be floating point numbers"),
    "NaN": ("tensors(numbers=(float('nan'), 1.0))", r"returned \[nan, 1.0\]; scores must be finite"),
    "infinite": ("tensors(numbers=(1.0, float('inf')))", r"returned \[1.0, inf\]; scores must be finite"),
    "dict": ("tensors(names=['score'])", "returned a dict; a reward must return one tensor of scores"),
}


@pytest.mark.parametrize(("call", "message"), SCORES.values(), ids=SCORES)
def test_wrong_scores_are_one_sentence(tmp_path, call, message):
    """Scores that break the contract of rewards are the function's fault, and name it and its environment."""
    python = lying_python(tmp_path, call=call)
    with pytest.raises(GuidedCDError, match=message) as error:
        external("other:score", python)(torch.rand(2, 2, 3, 8, 8), ["a", "b"])
    assert str(error.value).startswith(f"reward 'external:other:score': other:score in {python} returned ")


def test_conformance(function):
    """It passes every check of a reward; a copy and a pickled one have its options and start their own process."""
    config = ExternalConfig(function=function, python=sys.executable)
    component = load_plugins().get("reward", "external")
    for check in (all_checks := checks_of(component, config=config, installation=False)):
        check()
    reward = all_checks[0].checked.built
    assert reward.max_tokens == 8 and reward.count_tokens("a cat") == 5
    for other in (copy.deepcopy(reward), pickle.loads(pickle.dumps(reward))):
        assert other.config == reward.config and other.function._process is None
    reward.function.end()


def test_words_are_counted_where_the_reward_counts_none(tmp_path):
    """Without a tokenizer there, tokens are words, and the limit is the option's, or none."""
    python = lying_python(tmp_path)
    reward = external("other:score", python)
    assert reward.count_tokens("a red cat") == 3 and reward.max_tokens == sys.maxsize
    assert external("other:score", python, max_tokens=5).max_tokens == 5


@pytest.mark.parametrize("count", ["many", -1, True])
def test_a_wrong_count_is_one_sentence(tmp_path, count):
    """Tokens that are no whole number are the function's fault."""
    load = "answer(**{**LOAD, 'counts': True})"
    python = lying_python(tmp_path, load=load, gradient=f"answer(count={count!r})")
    with pytest.raises(GuidedCDError, match=f"counts {re.escape(repr(count))} tokens"):
        external("other:score", python).count_tokens("a")


def test_random_numbers_follow_the_step(tmp_path):
    """The seed of the other process is drawn from the generator that the engine sets."""
    python = lying_python(tmp_path, call="tensors(numbers=(request['seed'] % 1000, request['seed'] > 2**40))")
    reward, frames = external("other:score", python), torch.rand(2, 1, 3, 4, 4)
    assert reward(frames, ["a", "b"]).tolist() == [0, 0]
    scores = []
    for seed in (1, 1, 2):
        reward.generator = torch.Generator().manual_seed(seed)
        scores.append(reward(frames, ["a", "b"]).tolist())
    assert scores[0] == scores[1] != scores[2] and scores[0][1] == 1


def test_a_plan_leaves_out_the_reward_external():
    """A plan starts no process, and prints that its cost is unknown."""
    with pytest.raises(GuidedCDError, match="it runs in a process of its own, whose time and memory are not known"):
        outline(Chosen("external:a:b", ExternalConfig(function="a:b", python=sys.executable)))


@pytest.mark.slow
def test_a_reward_of_guidedcd_gives_the_same_there():
    """`external:clip` has the scores and gradients of `clip`, and reads captions with its tokenizer."""
    component = load_plugins().get("reward", "clip")
    clip, other = component.build(component.config()), external("clip", options=json.dumps({"dtype": "fp32"}))
    generator = torch.Generator().manual_seed(0)

    for _ in range(20):
        frames = torch.rand(2, 2, 3, 32, 40, generator=generator).requires_grad_()
        scores = [reward(frames, ["a red circle", "a blue square moving left"]) for reward in (clip, other)]
        torch.testing.assert_close(*scores, rtol=0, atol=1e-6)
        torch.testing.assert_close(*(torch.autograd.grad(one.sum(), frames)[0] for one in scores), rtol=1e-4, atol=1e-8)
    assert other.max_tokens == clip.max_tokens
    assert other.count_tokens("a red circle") == clip.count_tokens("a red circle")


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["same", "cpu"])
def test_frames_on_a_gpu_have_the_same_scores(function, device):
    """Scores and gradients of frames on a GPU are there, and have the values of the function here."""
    frames = torch.rand(2, 2, 3, 32, 32, device="cuda", requires_grad=True)
    scores = external(function, device=device)(frames, ["a", "bb"])
    (gradient,) = torch.autograd.grad(scores.sum(), frames)
    assert scores.device == gradient.device == frames.device
    torch.testing.assert_close(scores, frames.flatten(1).mean(1) * torch.tensor([1.0, 2.0], device="cuda"))
    torch.testing.assert_close(gradient[1].flatten(), torch.full((6144,), 2 / 6144, device="cuda"))


@pytest.mark.slow
def test_guidedcd_need_not_be_installed_there(function, package_folders, tmp_path):
    """An environment without guidedcd and numpy gives the scores of a file; a reward of guidedcd is one sentence."""
    python = clean_environment(tmp_path / "environment", package_folders)
    for link in (tmp_path / "environment").glob("lib*/python*/site-packages/numpy*"):
        link.unlink()
    frames = torch.rand(2, 2, 3, 8, 8, requires_grad=True)
    scores = external(function, str(python))(frames, ["a", "bb"])
    assert torch.equal(scores, frames.flatten(1).mean(1) * torch.tensor([1.0, 2.0]))
    assert torch.autograd.grad(scores.sum(), frames)[0].abs().min() > 0
    with pytest.raises(GuidedCDError, match="the environment of .* cannot serve: it has no guidedcd"):
        external("clip", str(python))(frames, ["a", "bb"])


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_training_gives_the_numbers_of_the_same_reward_here(function, toy, tmp_path, processes):
    """A run, alone and in two processes that each have their own, logs the losses of the run with the reward here."""
    options = {"batch_size": 4, "steps": 3}
    expected = trained(make(train=options), tmp_path / "a", tmp_path / "s")
    name = f"external:{function}"
    run = make(replace=["rewards"], rewards={name: {"weight": 0.1, "python": sys.executable}}, train=options)
    if processes == 1:
        lines = trained(run, tmp_path / "b", tmp_path / "s")
        tolerance = {"rel": 1e-6}
    else:
        started = launch(changed(run, train={"batch_size": 2}), tmp_path / "b", tmp_path / "t", TWO_PROCESSES)
        output, _ = started.communicate()
        assert started.returncode == 0, output
        lines = [json.loads(line) for line in Path(tmp_path, "b", "log.jsonl").read_text().splitlines()]
        tolerance = {"rel": 1e-4, "abs": 1e-6}
    for line, other in zip(lines, expected, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], **tolerance)
        assert line[f"reward/{name}"] == pytest.approx(other["reward/toy"], **tolerance)
