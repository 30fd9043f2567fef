"""Rewards, routes and metrics of the calling program in place of installed ones."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import attrs
import pytest
import torch

import guidedcd
from guidedcd.config.kinds import KINDS
from guidedcd.config.resolve import run_from_dict

TOY = {
    "teacher": "toy",
    "data": "toy",
    "train": {"steps": 2, "batch_size": 2, "checkpoint": {"every": 1}, "rollouts": {"videos": 0}},
    "preprocess": {"videos": 2, "draws_per_video": 1, "shard_size": 2},
    "evaluate": {"prompts": 2, "videos": 0, "steps": 1, "teacher_omega": [2.0]},
    "device": "cpu",
}
"""Options of a run with the tiny teacher and data set of the fixture `toy`."""


def warmth(video, captions):
    """Rewards (B,) of frames (B, F, 3, H, W): red minus blue."""
    return (video[:, :, 0] - video[:, :, 2]).mean((1, 2, 3))


def coldness(video, captions):
    """The opposite of `warmth`, (B,)."""
    return (video[:, :, 2] - video[:, :, 0]).mean((1, 2, 3))


def unguided(sample, route):
    """Every sample without energies."""
    return attrs.evolve(route, guided=False)


def untouched(sample, route):
    """The route as it is."""
    return route


def contrast(videos, prompts):
    """Values (B,) of videos (B, F, 3, H, W)."""
    return {"contrast": videos.std((1, 2, 3, 4))}


def spread(videos, prompts):
    """The same values under another name."""
    return {"spread": videos.std((1, 2, 3, 4))}


class Scale(torch.nn.Module):
    """A reward with a weight and an optional attribute, but without the attributes about text."""

    def __init__(self, config: guidedcd.RewardConfig) -> None:
        """Take the options."""
        super().__init__()
        self.config, self.generator = config, None
        self.scale = torch.nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, video, captions):
        """Rewards (B,)."""
        return self.scale * video.mean((1, 2, 3, 4))


OBJECTS = {
    "rewards": (warmth, coldness),
    "routes": (unguided, untouched),
    "metrics": (contrast, spread),
}


def described(key, value, **options):
    """A run of the profile `shapes` with one object."""
    chosen = {"energies": [], "rewards": [], "metrics": [], key: {"mine": value}}
    return guidedcd.Run.from_profile("shapes", **chosen, **options)


@pytest.mark.parametrize("key", OBJECTS)
def test_a_function_is_recorded_with_its_source(key):
    """run.json contains the qualified name, the source and its digest; another function gives another run."""
    run, other = (described(key, value) for value in OBJECTS[key])
    recorded = run.to_dict()[key]["mine"]

    assert recorded["python_object"].endswith(f"test_python_objects.{OBJECTS[key][0].__name__}")
    assert f"def {OBJECTS[key][0].__name__}" in recorded["source"] and len(recorded["source_digest"]) == 16
    assert run != other
    assert run_from_dict(json.loads(json.dumps(run.to_dict()))) == run


def test_options_of_the_kind_stand_beside_the_object():
    """A reward's weight and frames are set in the tuple, or by the object's attribute `config`."""
    pair = described("rewards", (warmth, {"weight": 2.0, "frames": 1}))
    attribute = described("rewards", Scale(guidedcd.RewardConfig(frames=3)))

    assert (pair.rewards["mine"].weight, pair.rewards["mine"].frames) == (2.0, 1)
    assert attribute.rewards["mine"].frames == 3


def test_a_reward_function_reads_captions_of_any_length():
    """A function has no tokenizer, so that no route withholds a caption from it."""
    reward = described("rewards", warmth).build("reward")["mine"]

    assert reward.count_tokens("word " * 1000) <= reward.max_tokens
    assert reward.to("cpu") is reward
    assert reward(torch.ones(2, 1, 3, 4, 4), ["a", "b"]).tolist() == [0.0, 0.0]


def test_a_wrapped_module_is_moved_and_draws_from_its_generator():
    """Calls and assignments reach the object that lacks some attribute of its kind; a class is built first."""
    reward = described("rewards", Scale).build("reward")["mine"]
    reward.generator = "generator"
    inner = reward._value

    assert isinstance(inner, Scale) and inner.config.frames == 2
    assert inner.generator == "generator"
    assert reward.to(torch.float64).scale.dtype == torch.float64


def test_a_route_and_a_metric_are_the_objects_themselves():
    """They need no attributes, and so no wrapper."""
    assert described("routes", unguided).build("route")["mine"] is unguided
    assert described("metrics", contrast).build("metric")["mine"] is contrast


@pytest.mark.parametrize("key", OBJECTS)
def test_another_program_refuses_to_build_it(key, tmp_path):
    """A process without the object states in one sentence where it comes from."""
    run = described(key, OBJECTS[key][0])
    kind = KINDS[key]
    (tmp_path / "run.json").write_text(json.dumps(run.to_dict()))
    script = (
        "import json, sys; import guidedcd; from guidedcd.config.resolve import run_from_dict\n"
        "run = run_from_dict(json.load(open(sys.argv[1])))\n"
        f"try: run.build({kind!r})\nexcept guidedcd.GuidedCDError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "run.json"], capture_output=True, text=True)

    assert re.search(f"{kind} 'mine' is the Python object .* start from the program", done.stdout), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("key", OBJECTS)
def test_a_run_with_an_object_resumes_unless_its_source_changed(key, toy, tmp_path):
    """`distil` trains and evaluates with the object, continues with it, and refuses a changed one in one sentence."""
    value, changed = OBJECTS[key]
    run, out = described(key, value, **TOY), tmp_path / "run"
    assert guidedcd.distil(run, out=out) == out
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    if key == "rewards":
        assert all("reward/mine" in line for line in log)
    if key == "metrics":
        assert '"contrast"' in (out / "evaluation.json").read_text()

    (out / "evaluation.json").unlink()  # as if the run had been interrupted before its evaluation
    with pytest.raises(
        guidedcd.GuidedCDError, match=f"{KINDS[key]} 'mine' .*{changed.__name__}.* has changed"
    ) as refusal:
        guidedcd.distil(described(key, changed, **TOY), out=out)
    assert "\n" not in str(refusal.value)
    assert guidedcd.distil(run, out=out) == out and (out / "evaluation.json").exists()
    recorded = json.loads((out / "run.json").read_text())[key]["mine"]
    assert recorded["source_digest"] == getattr(run, key)["mine"].source_digest
