"""The parts of evaluation.json that follow from scores, and the tables that are printed of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from guidedcd.console import console, print_table
from guidedcd.evaluation import tables
from guidedcd.evaluation.bootstrap import FEWEST, estimate, paired
from guidedcd.inference.metric import Metric

Scores = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
"""Scores by arm, split, score and prompt."""


def about_scores(metrics: Iterable[Metric], keys: Iterable[str]) -> dict[str, dict[str, str]]:
    """By score, its metric, title and direction."""
    return {key: metric.about(key) for metric in metrics for key in keys if key in metric.names}


def scores_of(scores: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """By score, its mean, interval and values as JSON values."""
    return {
        key: {**estimate(values).to_dict(), "values": [None if math.isnan(v) else round(v, 6) for v in values]}
        for key, values in scores.items()
    }


def differences(by_prompt: Scores) -> list[dict[str, Any]]:
    """The paired differences of the student, which is the first arm, and each other arm."""
    first, *others = by_prompt
    return [
        {
            "row": first,
            "against": other,
            "split": split,
            "score": key,
            **paired(values, by_prompt[other][split][key]).to_dict(),
        }
        for other in others
        for split, scores in by_prompt[first].items()
        for key, values in scores.items()
    ]


def print_evaluation(evaluation: tables.Evaluation, *, quiet: bool) -> None:
    """Print the summary, with the tables unless `quiet`."""
    if not quiet:
        for table in tables.tables(evaluation):
            print_table(table)
        console.print(
            f"95 % intervals by the bootstrap over prompts, from {FEWEST} prompts on; differences are paired by prompt "
            "and noise."
        )
    console.print(f"evaluate {evaluation['summary']}")
