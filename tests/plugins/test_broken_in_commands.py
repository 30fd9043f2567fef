"""Broken components of every kind in `guidedcd train`: one sentence that names component and plugin, and status 2."""

from __future__ import annotations

import json

import pytest
from toy_plugin import make

from guidedcd.cli import main

HEAD = """
import attrs, os, sys, torch
from guidedcd import *
from guidedcd import EnergyConfig, RewardConfig, RouteConfig, MetricConfig, DatasetConfig, TeacherConfig, hookimpl
from toy_plugin import data as ToyData, ToyData as ToyDataConfig, teacher as toy_teacher
"""
ENERGY = (
    HEAD
    + """
class Odd:
    def __init__(self, config): {init}
    def __call__(self, seen, reference):
        {body}
@hookimpl
def register_energies(register): register("odd", "acme_odd:Odd", config=EnergyConfig)
"""
)
REWARD = (
    HEAD
    + """
class Odd(torch.nn.Module):
    max_tokens = 77
    def __init__(self, config):
        super().__init__()
        {init}
    def count_tokens(self, text): return len(text.split())
    def forward(self, frames, captions):
        {body}
@hookimpl
def register_rewards(register): register("odd", "acme_odd:Odd", config=RewardConfig)
"""
)
ROUTE = (
    HEAD
    + """
class Odd:
    def __init__(self, config): {init}
    def __call__(self, sample, route):
        {body}
@hookimpl
def register_routes(register): register("odd", "acme_odd:Odd", config=RouteConfig)
"""
)
DATASET = (
    HEAD
    + """
class Odd(ToyData):
    def __init__(self, config):
        {init}
        super().__init__(ToyDataConfig())
    def __getitem__(self, index):
        {body}
@hookimpl
def register_datasets(register): register("odd", "acme_odd:Odd", config=DatasetConfig)
"""
)
TEACHER = (
    HEAD
    + """
def odd(config):
    {init}
    teacher = toy_teacher(config)
    {body}
@hookimpl
def register_teachers(register): register("odd", "acme_odd:odd", config=TeacherConfig)
"""
)
METRIC = (
    HEAD
    + """
class Odd:
    def __init__(self, config): {init}
    def __call__(self, videos, prompts):
        {body}
@hookimpl
def register_metrics(register): register("odd", "acme_odd:Odd", config=MetricConfig)
"""
)
CODE = {
    "energy": ENERGY,
    "reward": REWARD,
    "route": ROUTE,
    "dataset": DATASET,
    "teacher": TEACHER,
    "metric": METRIC,
}
FLAG = {"energy": "energies", "reward": "rewards", "route": "routes", "dataset": "data", "metric": "metrics"}
RIGHT = {
    "energy": "return (seen.x0 - reference.x0).square().flatten(1).mean(1)",
    "reward": "return frames.flatten(1).mean(1)",
    "route": "return route",
    "dataset": "return super().__getitem__(index)",
    "teacher": "return teacher",
    "metric": "return {'odd': videos.flatten(1).mean(1)}",
}
ANY = {
    "raises": ("raise ValueError('odd')", "failed with ValueError: odd"),
    "raises without text": ("raise KeyError()", "failed with KeyError"),
    "raises OSError": ("open('/no/such/file')", "FileNotFoundError"),
    "asserts": ("assert 1 == 2, 'never'", "failed with AssertionError: never"),
    "sys.exit": ("sys.exit(0)", "ended the program"),
    "its own sentence": ("raise GuidedCDError('it needs 4 frames.')", "it needs 4 frames"),
    "returns nothing": ("pass", ""),
    "returns a text": ("return 'x'", ""),
}
"""Faults of any component's body, and words of the sentence."""
CASES = [(kind, name, f"body: {name}", body, words) for kind in CODE for name, (body, words) in ANY.items()]
CASES += [
    (kind, name, f"init: {name}", init, words)
    for kind in CODE
    for name, (init, words) in ANY.items()
    if not name.startswith("returns")
]
ROUTES = {
    "a caption that is no text": "return attrs.evolve(route, caption=3)",
    "a guided that is a number": "return attrs.evolve(route, guided=1)",
    "rewards that are a list": "return attrs.evolve(route, rewards=['toy'])",
    "rewards that are a text": "return attrs.evolve(route, rewards='toy')",
    "rewards that are None": "return attrs.evolve(route, rewards=None)",
    "a reward that is misspelt": "return attrs.evolve(route, rewards=frozenset(['toyy']))",
    "a reward that is a number": "return attrs.evolve(route, rewards=frozenset([1]))",
    "captions of a misspelt reward": "return attrs.evolve(route, captions={'toyy': 'x'})",
    "captions that are no texts": "return attrs.evolve(route, captions={'toy': 3})",
    "captions that are a list": "return attrs.evolve(route, captions=['toy'])",
    "an energy that is misspelt": "return attrs.evolve(route, without_energies=frozenset(['toyy']))",
    "energies that are a text": "return attrs.evolve(route, without_energies='toy')",
    "a dictionary": "return {'rewards': ['toy']}",
    "the sample": "return sample",
    "a tuple": "return route, 1",
    "a changed route": "object.__setattr__(route, 'caption', 5); return route",
    "a changed sample": "sample.caption = 'y'; return route",
    "no argument": "return route()",
    "recursion": "return self(sample, route)",
}
CASES += [("route", name, f"body: {name}", body, "") for name, body in ROUTES.items()]
MORE = {
    "energy": {
        "not finite": "return seen.x0.flatten(1).mean(1) / 0",
        "one number": "return seen.x0.mean()",
        "detached": "return seen.x0.detach().flatten(1).mean(1)",
        "changes its input": "return seen.z.mul_(2).flatten(1).mean(1)",
    },
    "reward": {
        "not finite": "return frames.flatten(1).mean(1) / 0",
        "one number": "return frames.mean()",
        "detached": "return frames.detach().flatten(1).mean(1)",
        "changes its input": "return frames.mul_(2).flatten(1).mean(1)",
        "whole numbers": "return frames.flatten(1).mean(1).long()",
    },
    "dataset": {
        "other size": "clip = super().__getitem__(index); return attrs.evolve(clip, video=clip.video[:, :, :4])",
        "not finite": "clip = super().__getitem__(index); return attrs.evolve(clip, video=clip.video * float('nan'))",
        "range": "clip = super().__getitem__(index); return attrs.evolve(clip, video=clip.video * 255)",
        "whole numbers": "clip = super().__getitem__(index); return attrs.evolve(clip, video=clip.video.long())",
        "id of a number": "clip = super().__getitem__(index); return attrs.evolve(clip, id=3)",
        "caption of a number": "clip = super().__getitem__(index); return attrs.evolve(clip, caption=3)",
        "one id": "clip = super().__getitem__(index); return attrs.evolve(clip, id='same')",
    },
    "teacher": {
        "text of a number": "teacher.text = 3; return teacher",
        "text is not finite": "e = teacher.text; teacher.text = lambda c: {k: v / 0 for k, v in e(c).items()}; "
        "return teacher",
        "no schedule": "teacher.schedule = None; return teacher",
        "an object": "return object()",
        "a network that is not finite": "net = teacher.net; teacher.net = lambda *a, **k: net(*a, **k) / 0; "
        "return teacher",
        "latents of another size": "teacher.encode = lambda video: video; return teacher",
        "no network": "teacher.network = None; return teacher",
    },
    "metric": {
        "a number": "return 3.0",
        "texts": "return {'odd': ['a'] * len(videos)}",
        "other length": "return {'odd': videos.flatten(1).mean(1)[:1].repeat(99)}",
        "key of a number": "return {3: videos.flatten(1).mean(1)}",
    },
}
CASES += [(kind, name, f"body: {name}", body, "") for kind, some in MORE.items() for name, body in some.items()]


OFTEN = ("raises", "returns a text", "its own sentence", *MORE["teacher"], *list(ROUTES)[::3])
"""Faults that are among the slow tests; the others are in the campaign of faults, which takes minutes."""


def _mark(name: str, place: str) -> pytest.MarkDecorator:
    return pytest.mark.slow if name in OFTEN and place.startswith("body") else pytest.mark.campaign


@pytest.mark.parametrize(
    ("kind", "fault", "words"),
    [
        pytest.param(kind, (place.split(":")[0], code), words, id=f"{kind}-{place}", marks=_mark(name, place))
        for kind, name, place, code, words in CASES
    ],
)
def test_a_broken_component_is_one_sentence(toy, install, tmp_path, monkeypatch, capsys, kind, fault, words):
    """No traceback; component and plugin are named; nothing but an empty store was begun, except for metrics."""
    monkeypatch.chdir(tmp_path)
    place, code = fault
    parts = {"init": "...", "body": RIGHT[kind], place: code}
    install("acme-odd", CODE[kind].format(**parts))
    described = make(
        preprocess={"videos": 2, "draws_per_video": 2}, train={"steps": 1}, evaluate={"prompts": 2}
    ).to_dict()
    (tmp_path / "toy.json").write_text(json.dumps(described))
    flags = ["--teacher", "odd"] if kind == "teacher" else [f"--{FLAG[kind]}", "odd"]
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--config", "toy.json", "--out", "run", "--store", "store", *flags])
    printed = capsys.readouterr()

    errors = [line for line in printed.err.splitlines() if not line.startswith(("warning", "note", "waiting"))]
    assert exit_.value.code == 2, printed.out + printed.err
    assert "Traceback" not in printed.err
    assert len(errors) == 1 and errors[0].startswith("error: "), printed.err
    if "clips could not be used (the first, odd/" in errors[0]:
        return  # damaged clips are skipped, up to a share
    assert f"{kind} 'odd'" in errors[0] and "acme-odd" in errors[0], errors[0]
    assert words in errors[0], errors[0]
    if kind != "metric":
        assert not list((tmp_path / "store").glob("shard-*.json"))
