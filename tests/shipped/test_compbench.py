"""The suite `t2v-compbench`: its rules against official values, its CSV files and its layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from guidedcd_compbench import CompBenchConfig
from guidedcd_compbench.rules import (
    ANSWERS,
    action_binding,
    consistent_attribute,
    dynamic_attribute,
    motion_binding,
    motion_binding_of_category,
    object_interactions,
    spatial_frame,
)
from guidedcd_compbench.suite import CATEGORIES, CompBench

from guidedcd.errors import GuidedCDError
from guidedcd.evaluation.suites.results import read_results
from guidedcd.evaluation.suites.scores import summary

GOLDEN = Path(__file__).parents[1] / "goldens" / "vbench"


def test_scores_of_motion_binding_are_the_official_ones():
    """Scores of videos from displacements, and of the category, equal the official script's."""
    content = json.loads((GOLDEN / "motion_binding.json").read_text())
    scores = []
    for video in content["videos"]:
        directions = [direction for direction in (video["d_1"], video["d_2"]) if direction]
        shifts = [video["fg1_shift"], video["fg2_shift"]][: len(directions)]
        scores.append(motion_binding(directions, shifts, video["bg_shift"]))
        assert scores[-1] == pytest.approx(video["score"], abs=1e-12), video["id"]

    assert motion_binding_of_category(scores) == pytest.approx(content["final"], abs=1e-12)


def test_ratings_become_fractions():
    """The best ratings give 1, the worst 0; dynamic attributes reach 0.8 at most, and need 12 of 14 inner frames."""
    assert consistent_attribute([("A", "A")]) == 1 and consistent_attribute([("D", "D")]) == 0
    assert consistent_attribute([("C", "B")]) == pytest.approx(0.45) and len(ANSWERS) == 10
    assert action_binding([5, 0]) == 0.5 and object_interactions([1, 5, 3]) == 0.5
    assert dynamic_attribute((5, 1), (1, 5), 12) == pytest.approx(0.8)
    assert dynamic_attribute((5, 1), (1, 5), 11) == 0
    assert [spatial_frame(n, holds=False, overlap=0) for n in (0, 1, 2)] == [0, 0.2, 0.4]
    assert spatial_frame(2, holds=True, overlap=0.25) == pytest.approx(0.85)
    assert spatial_frame(2, holds=True, overlap=0.25, depth=True) == pytest.approx(0.55)


def test_the_last_line_of_a_csv_file_is_its_value(tmp_path):
    """The last line of each official CSV file is the value of the category in its name."""
    for number, key in enumerate(CATEGORIES):
        rows = "".join(f"{i:04d},prompt,0.3\n" for i in range(100))
        (tmp_path / f"model_{key}_score.csv").write_text(f"id,prompt,score\n{rows}score: ,0.{number + 1}\n")
    suite = CompBench(CompBenchConfig())

    about = summary(suite, "t2v-compbench", read_results(suite, [tmp_path]))

    assert list(about["dimensions"].values()) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    assert (
        not about["missing"] and not about["incomplete"] and about["published"][1]["values"]["motion_binding"] == 24.38
    )


WRONG = {
    "unfinished": ("model_numeracy_score.csv", "0001,0.3\n", "does not end with the line 'score: ,VALUE'"),
    "no category": ("model_score.csv", "score: ,0.3\n", "has no category of T2V-CompBench in its name"),
    "no number": ("model_numeracy_score.csv", "score: ,abc\n", "the score 'abc' is no number"),
    "out of range": ("model_dynamic_attr_score.csv", "score: ,0.9\n", "dynamic_attribute is 0.9, outside of its range"),
    "of VBench": ("results.json", '{"color": 0.9, "motion_binding": "x"}', "motion_binding is 'x' and no number"),
}


@pytest.mark.parametrize(("name", "text", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_one_sentence_of_the_suite(tmp_path, name, text, message):
    """A wrong file is one sentence."""
    (tmp_path / name).write_text(text)

    with pytest.raises(GuidedCDError, match=message):
        read_results(CompBench(CompBenchConfig()), [tmp_path / name])


def test_each_category_has_a_folder_of_videos(tmp_path):
    """Each category has a folder with one video for each prompt, in the order of the prompts, and no list is cut."""
    for number, key in enumerate(CATEGORIES, 1):
        (tmp_path / f"{number}_{key}.txt").write_text("a cat\na dog\n")

    videos = CompBench(CompBenchConfig(prompts=tmp_path)).videos()

    assert len(videos) == 14 and len({video.number for video in videos}) == 14
    assert videos[3].file == "2_dynamic_attr/0002.mp4" and videos[3].prompt == "a dog"
    (tmp_path / "1_consistent_attr.txt").write_text("a cat\n" * 200)
    assert len(CompBench(CompBenchConfig(prompts=tmp_path)).videos()) == 212
    (tmp_path / "1_consistent_attr.txt").write_text("a cat\n" * 1001)
    with pytest.raises(GuidedCDError, match=r"1_consistent_attr.txt has 1,001 prompts; .* at most 1,000"):
        CompBench(CompBenchConfig(prompts=tmp_path)).videos()
    (tmp_path / "1_consistent_attr.txt").write_text("a cat\n")
    (tmp_path / "7_numeracy.txt").unlink()
    with pytest.raises(GuidedCDError, match=r"has no file \*numeracy\*.txt"):
        CompBench(CompBenchConfig(prompts=tmp_path)).videos()
