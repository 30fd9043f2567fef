"""The routes `split-caption` and `dataset:NAME`."""

from __future__ import annotations

import pytest
from guidedcd_routes import DatasetRouteConfig, SplitCaptionConfig
from guidedcd_routes.captions import SplitCaption, first_sentence
from guidedcd_routes.datasets import FromDataset
from guidedcd_short_caption import ShortCaptionConfig
from guidedcd_short_caption.route import ShortCaption
from hypothesis import given
from hypothesis import strategies as st
from short_training import trained

from guidedcd import GuidedCDError, Route, Sample
from guidedcd.config.run import Run
from guidedcd.data.routing import PROMPTS, Reader, route, rules_of
from guidedcd.plugins.registry import Component
from guidedcd.testing import checks_of

READERS = {name: Reader(length, lambda text: len(text.split()) + 2) for name, length in (("long", 77), ("short", 10))}
texts = st.lists(st.sampled_from(["a", "b.", "c!", "d"]), max_size=100).map(" ".join)
split = SplitCaption(SplitCaptionConfig())
whole = ShortCaption(ShortCaptionConfig())


def sample(caption: str = "a ball", dataset: str = "d", short: str | None = None) -> Sample:
    """A sample of a run with two rewards, which count words, and two energies."""
    energies = frozenset({"pta", "jerk"})
    return Sample(id="x", dataset=dataset, caption=caption, short_caption=short, readers=READERS, energies=energies)


def only(dataset: str, **options: tuple[str, ...]) -> FromDataset:
    """The route `dataset:NAME`."""
    return FromDataset(DatasetRouteConfig(dataset=dataset, **options))


SENTENCES = {
    "A ball rolls. It stops.": "A ball rolls.",
    "A ball rolls": "A ball rolls",
    "It is 3.5 m wide! Really.": "It is 3.5 m wide!",
    "Dr. Who meets J. Doe, e.g. here. Then they leave.": "Dr. Who meets J. Doe, e.g. here.",
    'He says "stop." She does not.': 'He says "stop."',
    "球滚动。它停了。": "球滚动。",
    "": "",
}


@pytest.mark.parametrize(("text", "sentence"), SENTENCES.items())
def test_the_first_sentence_ends_at_its_full_stop(text, sentence):
    """Numbers, initials and abbreviations do not end a sentence."""
    assert first_sentence(text) == sentence


@given(texts, st.none() | texts)
def test_a_reward_reads_all_or_the_first_sentence_or_nothing(caption, short):
    """No reward truncates its text, and `split-caption` keeps every reward that `short-caption` keeps."""
    one = sample(caption, short=short)
    result, strict = route(one, [split]), route(one, [whole])

    assert strict.rewards <= result.rewards
    assert all(one.fits(reward, result.caption_of(reward)) for reward in result.rewards)
    assert all(result.caption_of(reward) == strict.caption for reward in strict.rewards)
    assert all(first_sentence(short or caption) == result.caption_of(name) for name in result.rewards - strict.rewards)
    assert all(not one.fits(name, first_sentence(short or caption)) for name in set(READERS) - result.rewards)


def test_short_caption_after_split_caption_keeps_its_choice():
    """A later rule judges the text that a reward reads, and not the whole caption."""
    one = sample("A ball rolls. " * 10)

    assert route(one, [split, whole]).rewards == {"long", "short"}
    assert route(one, [whole, split]).rewards == {"long"}


@pytest.mark.parametrize("rules", [[only("a")], [FromDataset.together([only("a"), only("b")])]], ids=["a", "a,b"])
def test_only_clips_of_named_datasets_are_used(rules):
    """Clips of the datasets keep their route, others train by distillation alone, and prompts are no clips."""
    used = {dataset: route(sample(dataset=dataset), rules) for dataset in ("a", "c", PROMPTS)}

    assert used["a"] == used[PROMPTS] == Route(caption="a ball", rewards=frozenset(READERS))
    assert (used["c"].rewards, used["c"].guided) == (frozenset(), False)
    assert route(sample(dataset="b"), rules).guided == (len(rules[0].configs) == 2)


def test_each_dataset_may_feed_other_objectives():
    """Rewards and energies that no rule names use all clips."""
    rules = [
        FromDataset.together(
            [only("a", rewards=("long",), energies=("none",)), only("b", rewards=("none",), energies=("pta",))]
        )
    ]
    used = {dataset: route(sample(dataset=dataset), rules) for dataset in "abc"}

    assert {name: one.rewards for name, one in used.items()} == {"a": set(READERS), "b": {"short"}, "c": {"short"}}
    guided = {name: {energy for energy in ("pta", "jerk") if one.is_guided_by(energy)} for name, one in used.items()}
    assert guided == {"a": {"jerk"}, "b": {"pta", "jerk"}, "c": {"jerk"}}


def test_names_that_the_run_lacks_are_refused():
    """A misspelt dataset, reward or energy would have no effect, or leave nothing to train on."""
    options = {"rewards": ["clip"], "energies": ["pta"], "data": ["shapes"]}
    for rule, text in {
        "shape": r"route 'dataset:shape': the run has no dataset 'shape'. It has shapes.",
        "shapes": r"route 'dataset:shapes': the run has no reward 'clop'. It has clip.",
    }.items():
        run = Run.from_profile("shapes", **options, routes={f"dataset:{rule}": {"rewards": ["clop"]}})
        with pytest.raises(GuidedCDError, match=text):
            next(iter(rules_of(run).values())).check_run(run)
    with pytest.raises(GuidedCDError, match="route 'dataset' needs its dataset: write dataset:VALUE."):
        Run.from_profile("shapes", routes="dataset")


def test_two_datasets_in_a_run_are_one_rule():
    """`dataset:a,dataset:b` lets clips of either through; options belong to one of them."""
    run = Run.from_profile(
        "shapes", data=["shapes", "folder:/x"], routes=["short-caption", "dataset:shapes", "dataset:folder"]
    )
    rules = rules_of(run)

    assert list(run.routes) == ["short-caption", "dataset:shapes", "dataset:folder"]
    assert [type(rule).__name__ for rule in rules.values()] == ["ShortCaption", "FromDataset"]
    assert list(rules)[1].startswith("route 'dataset:shapes' of guidedcd/routes and route 'dataset:folder' of ")
    used = {name: route(sample(dataset=name), rules).guided for name in ("shapes", "folder", "webvid")}
    assert used == {"shapes": True, "folder": True, "webvid": False}


def test_the_conformance_kit_passes():
    """Both pass every conformance check of routes."""
    for target, cls, config in (
        ("captions:SplitCaption", SplitCaptionConfig, None),
        ("datasets:FromDataset", DatasetRouteConfig, DatasetRouteConfig(dataset="d")),
    ):
        component = Component("route", "x", f"guidedcd_routes.{target}", cls, "guidedcd/test")
        for check in checks_of(component, config=config):
            check()


@pytest.mark.slow
def test_the_rewards_of_a_run_score_the_named_dataset(tmp_path):
    """The rewards of a run of two steps score the clips of the named dataset."""
    run = Run.from_profile(
        "shapes",
        data=[{"shapes": {"set": "web"}}],
        rewards=["clip"],
        routes=["split-caption", "dataset:shapes"],
        preprocess={"videos": 2, "draws_per_video": 1},
        train={"steps": 2, "log_every": 1, "rollouts": {"videos": 0}},
        device="cpu",
    )
    lines = trained(run, tmp_path / "run", tmp_path / "store")

    assert all(line["routed/clip"] == 1 for line in lines[-2:])
