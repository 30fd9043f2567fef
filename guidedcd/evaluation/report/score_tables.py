"""The tables of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from guidedcd.evaluation.tables import (
    FEWEST,
    OURS,
    difference,
    figure,
    headlines,
    interval,
    scores_of,
    sense,
    settings,
    signed,
    title,
    verdict,
)

WORDS = {"good": "better", "bad": "worse"}


@attrs.frozen
class Cell:
    """A cell of a table."""

    text: str
    note: str | None = None
    """Small print below the text."""
    verdict: str = ""
    """ "good" or "bad" where a difference is certain."""


@attrs.frozen
class Row:
    """A row of a table."""

    head: Cell
    cells: list[Cell]
    highlighted: bool = False


@attrs.frozen
class Table:
    """A table with one row of headings."""

    caption: str
    head: list[Cell]
    rows: list[Row]


@attrs.frozen
class Split:
    """The scores on one set of prompts."""

    title: str
    prompts: Sequence[str]
    table: Table


@attrs.frozen
class Scores:
    """The scores on every split, and the choice of the few-step teacher."""

    settings_tried: int
    choice_prompts: Any
    """Number of prompts for choosing."""
    fewest: int
    """Number of prompts from which a difference can be certain."""
    splits: list[Split]


NOTHING = Cell("-")


def scores(evaluation: Mapping[str, Any]) -> Scores:
    """One table per split: a row per score, a column per arm, then the paired differences."""
    few = next(row for row in evaluation["rows"] if row["name"] == evaluation["against"])
    return Scores(
        settings_tried=sum(one["steps"] == few["steps"] for one in evaluation["choice"]["tried"]),
        choice_prompts=evaluation["choice"]["prompts"],
        fewest=FEWEST,
        splits=[_split(evaluation, name, about) for name, about in evaluation["splits"].items()],
    )


def _split(evaluation: Mapping[str, Any], split: str, about: Mapping[str, Any]) -> Split:
    rows = [row for row in evaluation["rows"] if row.get("source", "measured") == "measured"]
    ours, others = rows[0], [row for row in rows if row["name"] != OURS]
    seeds = len(evaluation["seeds"])
    count = f"{len(about['prompts'])} {about['title']}" + (f", {seeds} seeds each" if seeds > 1 else "")
    head = [
        Cell("score"),
        *(Cell(row["label"], settings(row)) for row in rows),
        *(Cell(f"student minus {row['label']}", _same(ours, row)) for row in others),
    ]
    body = []
    for key in scores_of(evaluation, split):
        cells = [score_cell(row["scores"].get(split, {}).get(key)) for row in rows]
        cells += [difference_cell(evaluation, difference(evaluation, row["name"], split, key), key) for row in others]
        name = title(evaluation, key)
        note = ", ".join(text for text in (key, sense(evaluation, key)) if text and text != name)
        body.append(Row(Cell(name, note), cells, highlighted=key in headlines(evaluation)))
    return Split(about["title"], about["prompts"], Table(count, head, body))


def _same(ours: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The settings in which a row equals the student."""
    both = {"steps": "same steps", "evaluations": "same network calls"}
    return " and ".join(words for key, words in both.items() if ours.get(key) == row.get(key))


def score_cell(score: Mapping[str, Any] | None) -> Cell:
    """A mean with its interval."""
    if not score or score["mean"] is None:
        return NOTHING
    return Cell(figure(score["mean"]), interval(score))


def difference_cell(evaluation: Mapping[str, Any], paired: Mapping[str, Any] | None, key: str) -> Cell:
    """A difference with its interval, marked where it is certain."""
    if not paired or paired["mean"] is None:
        return NOTHING
    certain = verdict(evaluation, paired, key)
    text = f"{signed(paired['mean'])} {WORDS[certain]}" if certain else signed(paired["mean"])
    return Cell(text, interval(paired, signed), certain)


def choice(evaluation: Mapping[str, Any]) -> Table | None:
    """The settings of the few-step teacher that were compared, with their scores."""
    tried = evaluation["choice"]["tried"]
    if not tried:
        return None
    rows = [
        Row(
            Cell(f"{one['label']}, {one['solver']}, omega {one['omega']:g}{' (chosen)' if one['chosen'] else ''}"),
            [score_cell(one)],
            highlighted=bool(one["chosen"]),
        )
        for one in tried
    ]
    score = title(evaluation, tried[0]["score"])
    caption = f"{score}, on {evaluation['choice']['prompts']} separate prompts"
    return Table(caption, [Cell("setting"), Cell("score")], rows)


def model_card(evaluation: Mapping[str, Any]) -> Table | None:
    """Figures of the teacher's model card, measured by its authors on other prompts."""
    rows = [row for row in evaluation["rows"] if row.get("source") == "model card"]
    keys = list(dict.fromkeys(k for row in rows for scores in row["scores"].values() for k in scores))
    if not rows or not keys:
        return None
    body = [
        Row(
            Cell(row["label"], f"{settings(row)}, {evaluation['splits'].get(split, {}).get('title', split)}"),
            [score_cell(scores.get(key)) for key in keys],
        )
        for row in rows
        for split, scores in row["scores"].items()
    ]
    head = [Cell("teacher"), *(Cell(title(evaluation, key)) for key in keys)]
    return Table(
        "From the model card of the teacher: other prompts and noise, therefore no paired differences", head, body
    )
