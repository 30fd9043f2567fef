"""The parts of VBench without networks, against values of the official code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from guidedcd_vbench.rules import (
    HORIZONTAL,
    frame_score,
    intersection_over_union,
    is_static,
    largest_magnitudes,
    middle_frames,
    motion_smoothness,
    position_score,
    prompt_of,
)
from hypothesis import given
from hypothesis import strategies as st

GOLDEN = Path(__file__).parents[1] / "goldens" / "vbench"


def golden(name: str):
    """The content of a file of official values."""
    return json.loads((GOLDEN / name).read_text())


def average(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The rounded mean of two frames."""
    return ((first.astype(np.uint16) + second + 1) // 2).astype(np.uint8)


@pytest.mark.parametrize("name", golden("motion_smoothness_linear.json")["videos"])
def test_motion_smoothness(shared, name):
    """The score of a video whose odd frames are interpolated by the mean of their neighbours."""
    expected = golden("motion_smoothness_linear.json")["videos"][name]
    frames = np.load(shared("vbench") / "golden" / "tf" / f"{name}.npy")

    assert motion_smoothness(frames, average) == pytest.approx(expected["score"], abs=1e-9)


def test_motion_smoothness_by_hand():
    """Of four frames, one is compared; two frames have no score."""
    frames = np.zeros((4, 2, 2, 3), np.uint8)
    frames[1], frames[2], frames[3] = 51, 102, 255

    assert motion_smoothness(frames, average) == 1.0
    assert motion_smoothness(frames[:3] // 2, average) == pytest.approx(1 - 1 / 255)  # 0, 25, 51 and a mean of 26
    assert np.isnan(motion_smoothness(frames[:2], average))


def test_position_scores_are_the_official_ones():
    """Every pair of boxes has the official score of its relation."""
    for case in golden("spatial_relationship.json")["position_score"]:
        score = position_score(case["relation"], case["box1"], case["box2"])
        assert score == pytest.approx(case["score"], abs=1e-12), case


def test_frame_scores_are_the_official_ones():
    """Every frame has its official score; two boxes of one class count as the pair."""
    case = golden("spatial_relationship.json")["frame_scores"]
    key = case["key"]

    scores = [
        frame_score(key["relationship"], (key["object_a"], key["object_b"]), boxes) for boxes in case["predictions"]
    ]

    assert scores == case["scores"]


BOX = st.tuples(*[st.integers(0, 50)] * 2, *[st.integers(51, 100)] * 2)


@given(BOX, BOX, st.sampled_from([*HORIZONTAL, "on the top of"]))
def test_position_scores_are_symmetric_and_fractions(first, second, relation):
    """A score is in [0, 1] and does not depend on the order of the boxes, nor does their overlap."""
    score = position_score(relation, first, second)

    assert 0 <= score <= 1 and score == position_score(relation, second, first)
    assert intersection_over_union(first, first) == pytest.approx(1)


def test_sampled_frames_are_the_official_ones():
    """Which frames are read equals the official sampler."""
    for case in golden("sampling.json")["middle_sampler"]:
        assert middle_frames(case["vlen"], case["num"]) == case["idx"]


def test_prompts_in_file_names_are_the_official_ones():
    """The prompt in a file's name is that of the official code."""
    for file, prompt in golden("sampling.json")["prompt_from_filename"].items():
        assert prompt_of(file) == prompt


def test_the_static_filter_has_its_thresholds():
    """Two of 16 frames may move at 256 pixels, and the long pairs may reach four thresholds of 3 pixels."""
    still, moving = 2.9, 3.1
    options = {"height": 256, "width": 512}

    assert is_static([still] * 13 + [moving] * 2, (12.0, 12.0), **options)
    assert not is_static([still] * 12 + [moving] * 3, (0.0, 0.0), **options)
    assert not is_static([still] * 15, (12.1, 0.0), **options)
    assert not is_static([still] * 15, (0.0, 12.1), **options)


def test_largest_magnitudes():
    """The mean of the largest 5 % of a flow field is the official one; 2 % are fewer pixels."""
    expected = golden("dynamic_degree_rule.json")["random_flow"]["top5pct_mean"]
    field = np.zeros((2, 10, 10))
    field[0, 0, :2], field[1, 0, :2] = (3, 6), (4, 8)

    assert largest_magnitudes(field) == 7.5 and largest_magnitudes(field, 0.01) == 10.0
    assert expected > 0


def test_largest_magnitudes_of_the_official_field(shared):
    """A random flow field has the official mean of its largest 5 %."""
    case = golden("dynamic_degree_rule.json")["random_flow"]
    field = np.load(shared("vbench") / "golden" / case["file"])[0]

    assert largest_magnitudes(field, 0.05) == pytest.approx(case["top5pct_mean"], rel=1e-6)
