"""The scores of a table of results: each aggregate score from all of its dimensions, or none. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guidedcd.evaluation.suites.contract import PublishedRow, Suite
from guidedcd.evaluation.suites.results import Results, described_unknown

TOLERANCE = 2e-4
"""Difference of a stated score, a fraction, from the computed one that rounding to 0.01 percent explains."""


def scores_of(suite: Suite, values: Mapping[str, float]) -> dict[str, float | None]:
    """The aggregate scores of a suite, as fractions; None for a score of which a dimension is missing."""
    return {
        score.name: score.formula(values) if all(name in values for name in score.needs) else None
        for score in suite.scores
    }


def summary(suite: Suite, name: str, results: Results) -> dict[str, Any]:
    """The scores of a table as JSON values; docs/how-to/vbench.md describes the keys.

    Args:
        suite: The benchmark.
        name: Its registered name.
        results: The values.
    """
    values = results.values
    scores = scores_of(suite, values)
    missing = [dimension.name for dimension in suite.dimensions if dimension.name not in values]
    absent = {
        score.name: [one for one in score.needs if one not in values]
        for score in suite.scores
        if scores[score.name] is None
    }
    return {
        "suite": name,
        "title": suite.title,
        "sources": results.sources,
        "scores": scores,
        "dimensions": {dimension.name: values.get(dimension.name) for dimension in suite.dimensions},
        "missing": missing,
        "absent_scores": absent,
        "unknown": described_unknown(results, suite),
        "incomplete": {
            dimension.name: {"videos": results.counts[dimension.name], "of": dimension.videos}
            for dimension in suite.dimensions
            if dimension.videos is not None and results.counts.get(dimension.name, dimension.videos) < dimension.videos
        },
        "stated": {
            key: {"stated": value, "computed": scores[key], "agrees": _agrees(value, scores[key])}
            for key, value in results.stated.items()
        },
        "row": {key: _percent(values.get(key, scores.get(key))) for key in columns(suite)},
        "published": [published_row(suite, row) for row in suite.published()],
    }


def columns(suite: Suite) -> list[str]:
    """Dimensions and scores in the order of the published tables."""
    listed = [key for table in suite.tables for key in table]
    return listed or [*(score.name for score in suite.scores), *(dimension.name for dimension in suite.dimensions)]


def published_row(suite: Suite, row: PublishedRow) -> dict[str, Any]:
    """A published row as JSON values, in percent, with the scores that follow from its dimensions."""
    values = {key: value / 100 for key, value in {**row.values, **row.corrected}.items()}
    computed = {key: _percent(value) for key, value in scores_of(suite, values).items() if value is not None}
    return {
        "id": row.id,
        "label": row.label,
        "table": row.table,
        "values": {key: row.values[key] for key in columns(suite) if key in row.values}
        | {key: value for key, value in row.values.items() if key not in columns(suite)},
        "computed": computed,
        "misprints": dict(row.misprints),
        "corrected": dict(row.corrected),
    }


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _agrees(stated: float, computed: float | None) -> bool | None:
    """Whether a stated score, a fraction or in percent, is the computed one; None where that is absent."""
    if computed is None:
        return None
    return min(abs(stated - computed), abs(stated / 100 - computed)) <= TOLERANCE
