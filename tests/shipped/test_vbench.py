"""The suite `vbench`: its constants and arithmetic against a second implementation."""

from __future__ import annotations

import pytest
from guidedcd_vbench import VBenchConfig
from guidedcd_vbench.suite import VBench
from hypothesis import given
from hypothesis import strategies as st

from guidedcd.evaluation.suites.scores import published_row, scores_of

MINIMA = {
    "subject consistency": 0.1462,
    "background consistency": 0.2615,
    "temporal flickering": 0.6293,
    "motion smoothness": 0.7060,
    "appearance style": 0.0009,
}
MAXIMA = {
    "motion smoothness": 0.9975,
    "scene": 0.8222,
    "appearance style": 0.2855,
    "temporal style": 0.3640,
    "overall consistency": 0.3640,
}
QUALITY = (
    *("subject consistency", "background consistency", "temporal flickering", "motion smoothness"),
    *("aesthetic quality", "imaging quality", "dynamic degree"),
)
SEMANTIC = (
    *("object class", "multiple objects", "human action", "color", "spatial relationship", "scene"),
    *("appearance style", "temporal style", "overall consistency"),
)


def official(values: dict[str, float]) -> dict[str, float]:
    """The scores as the official script computes them, from values by names with spaces."""
    groups = {}
    for group, names in (("quality", QUALITY), ("semantic", SEMANTIC)):
        scores, weights = [], []
        for name in names:
            low, high, weight = MINIMA.get(name, 0), MAXIMA.get(name, 1), 0.5 if name == "dynamic degree" else 1
            scores.append((values[name] - low) / (high - low) * weight)
            weights.append(weight)
        groups[group] = sum(scores) / sum(weights)
    return {**groups, "total": (groups["quality"] * 4 + groups["semantic"] * 1) / (4 + 1)}


@given(st.lists(st.floats(0, 1), min_size=16, max_size=16))
def test_scores_equal_the_official_script(numbers):
    """Quality, Semantic and Total agree to 1e-12 for any values, also outside of the normalised ranges."""
    values = dict(zip([*QUALITY, *SEMANTIC], numbers, strict=True))

    scores = scores_of(VBench(VBenchConfig()), {name.replace(" ", "_"): value for name, value in values.items()})

    assert {name: scores[name] for name in official(values)} == pytest.approx(official(values), abs=1e-12)


@given(st.sets(st.sampled_from([*QUALITY, *SEMANTIC])), st.floats(0.3, 0.9))
def test_a_score_is_there_if_all_of_its_dimensions_are(absent, value):
    """Whichever dimensions are missing, a score is absent exactly if it needs one of them."""
    values = {name.replace(" ", "_"): value for name in (*QUALITY, *SEMANTIC) if name not in absent}

    scores = scores_of(VBench(VBenchConfig()), values)

    assert (scores["quality"] is None) == bool(absent & set(QUALITY))
    assert (scores["semantic"] is None) == bool(absent & set(SEMANTIC))
    assert (scores["total"] is None) == bool(absent)


def test_a_point_of_a_dimension_changes_total_by_its_weight():
    """One point of a dimension changes the Total by the known rates, such as 0.422 for motion smoothness."""
    suite = VBench(VBenchConfig())
    middle = {dimension.name: 0.3 for dimension in suite.dimensions}
    rates = {"motion_smoothness": 0.422, "temporal_flickering": 0.332, "dynamic_degree": 0.062, "scene": 0.027}
    for name, rate in rates.items():
        change = scores_of(suite, middle | {name: 0.31})["total"] - scores_of(suite, middle)["total"]
        assert change * 100 == pytest.approx(rate, abs=6e-4)


def test_published_rows_reproduce():
    """Every published row gives its printed scores within rounding, after the known misprints are corrected."""
    suite = VBench(VBenchConfig())
    checked = 0
    for row in suite.published():
        about = published_row(suite, row)
        for score, value in about["computed"].items():
            if score in row.values:
                assert value == pytest.approx(row.values[score], abs=0.014), (row.table, row.id, score)
                checked += 1
        if {"quality", "semantic", "total"} <= set(row.values):
            printed = {**row.values, **row.corrected}
            total = (4 * printed["quality"] + printed["semantic"]) / 5
            assert total == pytest.approx(printed["total"], abs=0.014), (row.table, row.id)
    assert checked == 30


def test_uncorrected_rows_do_not_reproduce():
    """Without its correction, each corrected row does not reproduce."""
    suite = VBench(VBenchConfig())
    rows = {(row.table, row.id): row for row in suite.published()}
    kling, ours = rows["Table 11", "kling"], rows["Table 2", "vcm_ov"]

    as_printed = scores_of(suite, {name: value / 100 for name, value in kling.values.items()})

    assert abs(100 * as_printed["quality"] - kling.values["quality"]) > 1
    assert abs((4 * ours.values["quality"] + ours.values["semantic"]) / 5 - ours.values["total"]) > 0.7


def test_quality_without_the_dynamic_degree():
    """Motion guidance raises Quality through the dynamic degree alone: 85.97 falls to 84.72 without it."""
    suite = VBench(VBenchConfig())
    rows = {row.id: published_row(suite, row) for row in suite.published() if row.table == "Table 11"}
    without = {name: row["computed"]["quality_without_dynamic_degree"] for name, row in rows.items()}

    assert without["v2_nomg_vgwv"] == pytest.approx(85.97, abs=0.01)
    assert without["v2_mg_vgwv"] == pytest.approx(84.72, abs=0.01)
