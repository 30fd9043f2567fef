"""Metrics that are wrong in one way each: what an evaluation states about them, and the check of the kit that fails."""

from __future__ import annotations

import math

import pytest
import torch

from guidedcd.data.clips import Prompt
from guidedcd.errors import GuidedCDError
from guidedcd.evaluation.arms import build_metrics
from guidedcd.plugins.registry import load_plugins
from guidedcd.testing import checks

pytestmark = pytest.mark.slow

PLUGIN = """
import torch
from guidedcd import MetricConfig, hookimpl

class Odd:
    {members}
    def __init__(self, config): ...
    def __call__(self, videos, prompts):
        {body}

@hookimpl
def register_metrics(register): register("odd", "acme_odd:Odd", config=MetricConfig)
"""
MEAN = "videos.flatten(1).mean(1)"
WRONG = {
    "a tensor": (f"return {MEAN}", "returned Tensor; it must return a dict"),
    "nothing": ("videos", "returned NoneType"),
    "numbers as names": (f"return {{1: {MEAN}}}", "must return a dict from names"),
    "one value for all": (f"return {{'x': {MEAN}.mean()}}", r"'x' of shape \(\) for 2 videos, not \(2,\)"),
    "one value too few": (f"return {{'x': {MEAN}[1:]}}", r"of shape \(1,\) for 2 videos"),
    "a value for each frame": ("return {'x': videos.mean((2, 3, 4))}", r"of shape \(2, 3\)"),
    "texts": ("return {'x': ['good', 'bad']}", "values of 'x' that are no numbers"),
    "texts of numbers": ("return {'x': ['0.5', '0.5']}", "values of 'x' that are no numbers"),
    "infinite values": (f"return {{'x': {MEAN} / 0}}", "infinite values of 'x'"),
    "None for a video": ("return {'x': [None, 1.0]}", "values of 'x' that are no numbers"),
}
PROMPTS = [Prompt(text="a ball"), Prompt(text="a box")]


@pytest.fixture(autouse=True)
def only_it(monkeypatch):
    """Leave out the plugins of guidedcd, which take time."""
    monkeypatch.setenv("GUIDEDCD_BLOCK", "guidedcd")


def metric(install, *, body, members="..."):
    """The plugin's metric as an evaluation has it."""
    install("acme-odd", PLUGIN.format(body=body, members=members))
    registry = load_plugins()
    return build_metrics({"odd": registry.get("metric", "odd").config()}, registry, 8.0)[0]


@pytest.mark.parametrize(("body", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_result_names_the_metric(install, body, message):
    """One sentence names the metric and its plugin."""
    one = metric(install, body=body)

    with pytest.raises(GuidedCDError, match=f"^metric 'odd' of acme-odd/acme_odd .*{message}"):
        one.scores(torch.rand(2, 3, 3, 4, 4) + 0.1, PROMPTS)


def test_values_keep_all_their_digits(install):
    """Lists of Python numbers, float32 tensors and NaN are accepted as they are."""
    one = metric(install, body="return {'x': [0.1, 1 / 3], 'y': torch.tensor([float('nan'), 0.5])}")

    scores = one.scores(torch.rand(2, 3, 3, 4, 4), PROMPTS)

    assert scores["x"] == [0.1, 1 / 3] and math.isnan(scores["y"][0]) and scores["y"][1] == 0.5


def test_an_exception_names_the_metric(install):
    """A bug keeps its type."""
    with pytest.raises(ZeroDivisionError) as caught:
        metric(install, body="1 / 0").scores(torch.rand(2, 3, 3, 4, 4), PROMPTS)

    assert caught.value.__notes__ == ["in metric 'odd' of acme-odd/acme_odd"]


KIT = {
    "texts": ("return {'x': ['good', 'bad']}", "...", "metric_scores_each_video", "no numbers"),
    "no values": ("return {}", "...", "metric_scores_each_video", "returned no values"),
    "changes its videos": (f"videos.mul_(2); return {{'x': {MEAN}}}", "...", "metric_scores_each_video", "in place"),
    "draws random numbers": (
        f"return {{'x': {MEAN} + torch.rand(len(videos))}}",
        "...",
        "metric_scores_each_video",
        "drew from torch's global random generator",
    ),
    "counts its calls": (
        f"self.n = getattr(self, 'n', 0) + 1; return {{'x': self.n * {MEAN}}}",
        "...",
        "metric_is_repeatable",
        "other values the second time",
    ),
    "compares within the batch": (
        f"return {{'x': {MEAN} - videos.mean()}}",
        "...",
        "metric_treats_videos_alone",
        "differ from those of each video alone",
    ),
    "takes the prompt of its neighbour": (
        f"return {{'x': {MEAN} * torch.tensor([float(len(p.text)) for p in prompts[::-1]])}}",
        "...",
        "metric_treats_videos_alone",
        "differ from those of each video alone",
    ),
    "titles of other values": (
        f"return {{'x': {MEAN}}}",
        "titles = {'y': 'why'}",
        "metric_describes_its_values",
        "`titles` names",
    ),
    "an unknown direction": (
        f"return {{'x': {MEAN}}}",
        "better = {'x': 'up'}",
        "metric_describes_its_values",
        "`better` has",
    ),
    "a headline that it lacks": (
        f"return {{'x': {MEAN}}}",
        "headline = 'all'",
        "metric_describes_its_values",
        "`headline` is 'all'",
    ),
    "further headlines that it lacks": (
        f"return {{'x': {MEAN}}}",
        "headline, headlines = 'x', ('x', 'y')",
        "metric_describes_its_values",
        r"`headlines` names \['y'\]",
    ),
    "keeps its videos": (
        f"self.all = [*getattr(self, 'all', []), videos + 1]; return {{'x': {MEAN}}}",
        "...",
        "metric_frees_memory",
        "memory grows",
    ),
}


@pytest.mark.parametrize(("body", "members", "rule", "message"), KIT.values(), ids=KIT)
def test_the_kit_finds_the_fault(install, body, members, rule, message):
    """One check fails with a sentence."""
    install("acme-odd", PLUGIN.format(body=body, members=members))
    (check,) = [check for check in checks("metric", "odd") if check.rule.__name__ == rule]

    with pytest.raises(AssertionError, match=message):
        check()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flicker", "dynamic-degree"])
def test_shipped_metrics_break_no_rule(monkeypatch, name):
    """The metrics that need no scene pass."""
    monkeypatch.delenv("GUIDEDCD_BLOCK")

    for check in checks("metric", name)[1:]:
        check()
