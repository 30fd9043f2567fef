"""Suites whose description is wrong: each fault breaks one rule of the conformance kit."""

from __future__ import annotations

import types

import pytest

from guidedcd.errors import GuidedCDError
from guidedcd.evaluation.suites.contract import AggregateScore, Dimension, PublishedRow, Suite, SuiteVideo
from guidedcd.plugins.registry import load_plugins
from guidedcd.testing import checks, suites

ONE, TWO = (Dimension(name=name, group="all", title=name) for name in ("one", "two"))


def suite(**members: object) -> types.SimpleNamespace:
    """A checked suite with two dimensions and their mean, and with these members in place of its own."""
    mean = AggregateScore(
        name="mean", title="Mean", needs=("one", "two"), formula=lambda values: (values["one"] + values["two"]) / 2
    )
    right = {"title": "right", "dimensions": (ONE, TWO), "scores": (mean,), "tables": (("mean", "one", "two"),)}
    return types.SimpleNamespace(built=type("Made", (Suite,), right | members)(None))


def score(needs: tuple[str, ...], formula) -> AggregateScore:
    """A score with this formula."""
    return AggregateScore(name="mean", title="Mean", needs=needs, formula=formula)


def rows(**options: object):
    """The method `published` with one row."""
    return lambda self: [PublishedRow(id="a", label="a", table="Table 1", values={"one": 50.0}, **options)]


def videos(*files: str, numbers: tuple[int, ...] = (0, 1), prompt: str = "a cat"):
    """The method `videos` with these files."""
    listed = [SuiteVideo(file=file, prompt=prompt, number=one) for file, one in zip(files, numbers, strict=True)]
    return lambda self: listed


FAULTS = {
    "no dimensions": ("suite_describes_itself", {"dimensions": (), "tables": ()}, "no dimensions"),
    "one name twice": ("suite_describes_itself", {"dimensions": (ONE, ONE)}, "have one name"),
    "an empty range": (
        "suite_describes_itself",
        {"dimensions": (Dimension(name="one", group="all", title="One", low=1, high=1), TWO)},
        "the range of one is empty",
    ),
    "an unknown column": ("suite_describes_itself", {"tables": (("three",),)}, "`tables` has columns .*three"),
    "an unknown correction": (
        "suite_describes_itself",
        {"published": rows(corrected={"two": 1.0})},
        "row a corrects .*two",
    ),
    "an unknown need": ("suite_scores_need_what_they_state", {"scores": (score(("six",), len),)}, "needs .*six"),
    "a need that is not stated": (
        "suite_scores_need_what_they_state",
        {"scores": (score(("one",), lambda values: values["one"] + values["two"]),)},
        "score mean reads 'two', which it does not state",
    ),
    "no number": ("suite_scores_need_what_they_state", {"scores": (score(("one",), lambda _: None),)}, "is None"),
    "another scale": (
        "suite_reads_its_results",
        {"parse": lambda self, name, text: {"one": 1.0}},
        "`parse` returns",
    ),
    "a file outside": ("suite_names_its_videos", {"videos": videos("../a.mp4", "b.mp4")}, "lie outside"),
    "a file twice": ("suite_names_its_videos", {"videos": videos("a.mp4", "a.mp4")}, "the same file"),
    "a number twice": (
        "suite_names_its_videos",
        {"videos": videos("a.mp4", "b.mp4", numbers=(1, 1))},
        "the same number",
    ),
    "no prompt": ("suite_names_its_videos", {"videos": videos("a.mp4", "b.mp4", prompt=" ")}, "no prompt"),
}


@pytest.mark.parametrize(("rule", "members", "message"), FAULTS.values(), ids=FAULTS)
def test_the_kit_finds_the_fault(rule, members, message):
    """The rule fails with a sentence."""
    with pytest.raises(AssertionError, match=message):
        getattr(suites, rule)(suite(**members))


def test_the_right_suite_passes():
    """A suite without a fault breaks no rule."""
    for rule in suites.RULES:
        rule(suite(videos=videos("a.mp4", "b.mp4")))


def test_a_suite_without_videos_or_program_is_an_error():
    """A suite that has only tables is one clear error when videos or a program are needed."""
    built = suite().built

    with pytest.raises(GuidedCDError, match="cannot generate the videos of right; only its tables"):
        built.videos()
    with pytest.raises(GuidedCDError, match="runs no program of right. Give its results with"):
        built.commands(None)


@pytest.mark.parametrize("name", ["vbench", "t2v-compbench"])
def test_shipped_suites_break_no_rule(name, tmp_path):
    """Both suites pass with lists of prompts of the right names."""
    component = load_plugins().get("suite", name)
    lists = ("color", "scene", "temporal_flickering") if name == "vbench" else ()
    keys = ("consistent_attr", "dynamic_attr", "spatial_relationship", "motion_binding", "action_binding")
    for key in lists or (*keys, "interaction", "numeracy"):
        (tmp_path / f"{key}.txt").write_text("a cat\na dog\n")
    options = {"dimensions": ("color", "scene", "temporal_flickering")} if lists else {}

    for check in checks("suite", name, config=component.config(prompts=tmp_path, **options)):
        if "light" not in str(check):
            check()
