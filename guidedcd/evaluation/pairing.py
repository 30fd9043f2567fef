"""Evaluations of several runs, paired by prompt and noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guidedcd.errors import GuidedCDError
from guidedcd.evaluation import tables
from guidedcd.evaluation.bootstrap import paired

Differences = dict[tuple[str, str, str], dict[str, Any]]
"""Each run's student minus the first run's, by (run, split, score)."""


def refuse_repeated(folders: Sequence[Path]) -> None:
    """Refuse a folder that is given twice.

    Raises:
        GuidedCDError: There is one.
    """
    for number, path in enumerate(folders):
        if path.resolve() in [other.resolve() for other in folders[:number]]:
            raise GuidedCDError(f"{path} is given twice. Give different runs to compare.")


def distinct_names(names: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """The names of the runs; their folders' names, or else their whole paths, where several have the same name."""
    for candidates in (list(names), [folder.name for folder in folders]):
        if len(set(candidates)) == len(candidates) and all(candidates):
            return candidates
    return [str(folder) for folder in folders]


def unlike(first: tables.Evaluation, other: tables.Evaluation) -> str | None:
    """The first setting that keeps two evaluations from being paired: "splits", "seeds" or "steps"; None without."""
    return next((key for key in ("splits", "seeds", "steps") if other.get(key) != first.get(key)), None)


def differences(named: Mapping[str, tables.Evaluation]) -> Differences:
    """The differences of every run from the first, by evaluations that can be paired."""
    (_, first), *others = named.items()
    result: Differences = {}
    baseline = _values(first)
    for name, other in others:
        measured = _values(other)
        for split, scores in baseline.items():
            for key, values in scores.items():
                if (own := measured[split].get(key)) is not None and len(own) == len(values):
                    result[name, split, key] = paired(own, values).to_dict()
    return result


def _values(evaluation: tables.Evaluation) -> dict[str, dict[str, list[float]]]:
    """The student's scores by split, score and prompt."""
    row = next(row for row in evaluation["rows"] if row["name"] == tables.OURS)
    return {
        split: {key: [math.nan if v is None else v for v in score.get("values", ())] for key, score in scores.items()}
        for split, scores in row["scores"].items()
    }
