"""A routing rule that is wrong for a late clip stops a run before that clip, or the prompt, costs any computing."""

from __future__ import annotations

import attrs
import pytest

import guidedcd
from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError

RUN = {
    "teacher": "toy",
    "energies": [],
    "rewards": "toy",
    "metrics": [],
    "preprocess": {"videos": 6, "draws_per_video": 1, "shard_size": 2},
    "train": {"steps": 1, "batch_size": 1, "rollouts": {"videos": 0}},
    "evaluate": {"prompts": 2, "videos": 0, "steps": 1, "teacher_omega": [2.0]},
    "device": "cpu",
}
wrong_for: set[str] = set()
"""Ids of the samples that `strict` sends to an unknown reward; a test changes it, as an author edits a rule."""


def strict(sample, route):
    """Send some samples to a reward that the run does not have."""
    return attrs.evolve(route, rewards=frozenset({"clap"})) if sample.id in wrong_for else route


def careless(sample, route):
    """Read a tag that the last clip lacks."""
    return attrs.evolve(route, guided=sample.id.endswith("5") and sample.tags["absent"])


def distil(rule, data, folder, **train):
    """A run of two shards and more over `data`."""
    options = {**RUN, "data": data, "routes": {"mine": rule}, "train": {**RUN["train"], **train}}
    return guidedcd.distil(guidedcd.Run.from_profile("shapes", **options), store=folder / "store", evaluation=False)


@pytest.fixture
def wrong(monkeypatch):
    """Sets the ids of samples with a wrong route."""

    def make(*ids: str) -> None:
        wrong_for.clear()
        wrong_for.update(ids)

    yield make
    wrong_for.clear()


@pytest.mark.parametrize("rule", [strict, careless])
def test_a_dataset_that_lists_its_metadata_is_routed_before_the_store(toy, wrong, tmp_path, rule):
    """The last of six clips is wrong, and no file of the store is written; the error names the clip."""
    wrong("web-0-000005", "dense-0-000005")

    with pytest.raises((GuidedCDError, KeyError)) as caught:
        distil(rule, {"shapes": {"set": "web"}}, tmp_path)

    text = " ".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert "sample 'web-0-000005'" in text
    assert not (tmp_path / "store").exists()


def test_a_dataset_that_decodes_its_clips_is_routed_shard_by_shard(toy, wrong, tmp_path):
    """A wrong route in the third shard keeps two, computes nothing of the third, and the corrected rule continues."""
    wrong("toy/4")
    with pytest.raises(GuidedCDError, match="sends sample 'toy/4' to reward 'clap'"):
        distil(strict, "toy", tmp_path)
    shards = sorted(path.name for path in (tmp_path / "store").glob("shard-*.json"))

    wrong()
    folder = distil(strict, "toy", tmp_path)

    assert shards == ["shard-00000.json", "shard-00001.json"]
    assert (folder / "student" / "student.json").exists()
    numbers = {"clips": 6, "rewards": {"toy": 6}, "without_rewards": 0, "energies": {}}
    assert read_json(folder / "routing.json") == numbers
    assert "Routing: clips of the store" in (folder / "report.html").read_text()


def test_a_complete_store_is_routed_before_the_first_step(toy, wrong, tmp_path):
    """An edited rule that is wrong for the last stored clip stops the run before it has a log."""
    distil(strict, "toy", tmp_path)
    wrong("toy/5")

    with pytest.raises(GuidedCDError, match="sends sample 'toy/5' to reward 'clap'"):
        distil(strict, "toy", tmp_path, steps=2)

    assert len(list(tmp_path.glob("runs/*/log.jsonl"))) == 1


def test_prompts_of_own_videos_are_routed_before_the_store(toy, wrong, tmp_path):
    """A rule that is wrong for the last prompt of the student's own videos stops the run without a store."""
    (tmp_path / "prompts.txt").write_text("one\ntwo\nthree\n")
    wrong("prompt-2")

    with pytest.raises(GuidedCDError, match="sends sample 'prompt-2' to reward 'clap'"):
        distil(strict, "toy", tmp_path, rollouts={"videos": 1, "prompts": "prompts.txt"})

    assert not (tmp_path / "store").exists()
