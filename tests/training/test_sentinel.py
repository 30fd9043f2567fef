"""The sentinel in training: what it measures, its files, its three actions, and an interruption."""

from __future__ import annotations

import json

import pytest
import torch
from short_training import interrupted, trained
from toy_plugin import make

from guidedcd.errors import GuidedCDError
from guidedcd.evaluation.report.page import write_report
from guidedcd.files import write_json
from guidedcd.training import sentinel
from guidedcd.training.drift import statistics

PLUGIN = """
import torch
from guidedcd import MetricConfig, RewardConfig, hookimpl

@hookimpl
def register_rewards(register):
    register("bright", "acme_judges:Bright", config=RewardConfig)

@hookimpl
def register_metrics(register):
    register("dark", "acme_judges:Dark", config=MetricConfig)

class Bright(torch.nn.Module):
    max_tokens = 77

    def __init__(self, config):
        super().__init__()

    def count_tokens(self, text):
        return len(text.split())

    def forward(self, video, captions):
        return video.flatten(1).mean(1)

class Dark:
    better = {"dark": "higher"}

    def __init__(self, config):
        pass

    def __call__(self, videos, prompts):
        return {"dark": 1 - videos.flatten(1).mean(1), "aside": videos.flatten(1).mean(1)}
"""
"""A reward, and a metric that falls exactly as the reward rises."""


@pytest.fixture
def judges(toy, install):
    """The toy run's components, and those of PLUGIN."""
    install("acme-judges", PLUGIN)


def run(**changes):
    """A run whose only reward is optimised far too strongly."""
    options = {"every": 2, "prompts": 8, "judges": ("dark",), **changes}
    train = {"steps": 10, "loss": "l2", "optimizer": {"lr": 1e-2}, "sentinel": options, "checkpoint": {"every": 5}}
    rewards = {"bright": {"weight": 300.0, "frames": 2}}
    return make(rewards=rewards, train=train, evaluate={"teacher_steps": 2, "steps": 2}, replace=("rewards",))


def lines(folder):
    """The lines of a run's sentinel.jsonl."""
    return [json.loads(line) for line in (folder / "sentinel.jsonl").read_text().splitlines()]


def test_an_over_optimised_reward_is_reported(judges, tmp_path, capsys):
    """Each check is a line with values by prompt and a contact sheet; the fall of the judge is a warning."""
    trained(run(), tmp_path / "a", tmp_path / "s")
    first, *checks = lines(tmp_path / "a")
    assert first["step"] == 0 and set(first["limits"]) == set(checks[0]["drift"])
    assert [check["step"] for check in checks] == [2, 4, 6, 8, 10]
    assert all(set(check["judges"]) == {"dark"} and len(check["judges"]["dark"]) == 8 for check in checks)
    assert len(list((tmp_path / "a" / "sentinel").glob("step-*.png"))) == 5
    alarms = [text for check in checks for text in check["alarms"]]
    assert any(text.startswith("dark fell by") and "bright rose by" in text for text in alarms)
    out = capsys.readouterr().out
    assert "sentinel step 2: bright" in out and "warning  dark fell by" in out
    assert {check["weights"]["bright"] for check in checks} == {300.0}
    write_json(tmp_path / "a" / "run.json", {"name": "a"})
    page = write_report(tmp_path / "a").read_text()
    assert "dark fell by" in page and page.count('alt="Frames of the student') == 2
    assert "Judges that train nothing" in page


@pytest.mark.slow
def test_a_sentinel_changes_no_training(judges, tmp_path):
    """A run with a sentinel that only warns has the losses of a run without one."""
    assert trained(run(), tmp_path / "a", tmp_path / "s") == trained(run(every=None), tmp_path / "b", tmp_path / "s")


@pytest.mark.slow
def test_back_off_lowers_the_weight_and_resumes(judges, tmp_path, monkeypatch):
    """An alarm halves the weight from the next step on, and an interrupted run repeats that."""
    with_back_off = run(action="back-off")
    straight = trained(with_back_off, tmp_path / "a", tmp_path / "s")
    weights = [check["weights"]["bright"] for check in lines(tmp_path / "a")[1:]]
    assert weights[0] == 300.0 and weights[-1] < 300.0 and set(weights) <= {300.0, 150.0, 75.0, 37.5}
    for number in (8, 10):
        with interrupted(monkeypatch, number):
            trained(with_back_off, tmp_path / "b", tmp_path / "s")
    assert trained(with_back_off, tmp_path / "b", tmp_path / "s") == straight
    assert lines(tmp_path / "b") == lines(tmp_path / "a")


@pytest.mark.slow
def test_stop_ends_the_training_in_one_sentence(judges, tmp_path):
    """The error names the judge, the reward, the evidence, and what to do; the checks before it are kept."""
    with pytest.raises(GuidedCDError, match=r"stopped the training after step \d+: dark fell .* bright rose .*warn"):
        trained(run(action="stop"), tmp_path / "a", tmp_path / "s")
    assert lines(tmp_path / "a")[-1]["alarms"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"judges": ("bright",)}, "the reward 'bright' is trained, so that it cannot judge"),
        ({"judges": ("drak",)}, "no metric or reward is called 'drak'. Did you mean 'dark'"),
        ({"judges": ()}, "this run has no metric that judges"),
        ({"prompts": 7}, "prompts"),
        ({"action": "bark"}, "action"),
    ],
)
def test_mistakes_are_one_sentence(judges, options, message):
    """A judge that is trained, misspelt or missing, and values out of range, are named before a store is computed."""
    with pytest.raises(GuidedCDError, match=message):
        sentinel.check(run(**options))


def test_a_judge_takes_a_value_after_its_name(judges):
    """The value after ':' is an option of the judge, as in --rewards, and a metric without one takes none."""
    (judge,) = sentinel.check(run(judges="imscore:siglip"))
    assert (judge.name, judge.config.model) == ("imscore:siglip", "siglip")
    with pytest.raises(GuidedCDError, match="metric 'dark' takes no value after ':'"):
        sentinel.check(run(judges="dark:x"))


@pytest.mark.slow
def test_a_trained_reward_that_reads_latents_is_not_scored(judges, tmp_path):
    """The sentinel scores videos, so that a run with such a reward beside another has checks of the other alone."""
    one = make(
        rewards={"bright": {"weight": 1.0, "frames": 2}, "energy:saturation": {}},
        train={"steps": 2, "sentinel": {"every": 1, "prompts": 8, "judges": ("dark",)}},
        evaluate={"teacher_steps": 2, "steps": 2},
        replace=("rewards",),
    )
    trained(one, tmp_path / "a", tmp_path / "s")
    assert [set(check["rewards"]) for check in lines(tmp_path / "a")[1:]] == [{"bright"}, {"bright"}]


def test_statistics_of_videos():
    """A grey, constant video has no saturation, change or flicker; colour, motion and noise change different ones."""
    grey = torch.full((1, 4, 3, 16, 16), 0.5)
    steady = grey + torch.linspace(0, 0.3, 4).view(1, 4, 1, 1, 1)
    red = grey.clone()
    red[:, :, 0] = 1.0
    noise = torch.rand(1, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    values = statistics(torch.cat([grey, steady, red, noise]))
    assert values["saturation"].tolist()[:3] == pytest.approx([0, 0, 0.5], abs=1e-6)
    assert values["brightness"][0].item() == pytest.approx(0.5)
    assert values["change"].tolist()[:3] == pytest.approx([0, 0.1, 0], abs=1e-6)
    assert values["flicker"].tolist()[:3] == pytest.approx([0, 0, 0], abs=1e-6) and values["flicker"][3] > 0.3
    assert values["contrast"][0].item() == pytest.approx(0, abs=1e-6) and values["contrast"][3] > 0.1
    assert (statistics(grey.expand(3, -1, -1, -1, -1))["diversity"] == 0).all()
    assert statistics(torch.cat([grey, red]))["diversity"].tolist() == pytest.approx([1 / 6, 1 / 6])
    assert statistics(grey[:, :1])["change"].tolist() == [0]
