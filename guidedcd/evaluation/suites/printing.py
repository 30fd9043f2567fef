"""A table of results on the terminal: the scores, and one row beside published ones. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from guidedcd.console import console, counted, plain_table, print_table
from guidedcd.evaluation.suites.contract import Suite
from guidedcd.evaluation.suites.scores import columns

OURS = "this table"
"""Label of the row of the user's own results."""


def print_summary(suite: Suite, summary: Mapping[str, Any]) -> None:
    """Print the scores with twelve decimals, the row in percent beside published rows, and what is missing."""
    total, missing = len(suite.dimensions), len(summary["missing"])
    files = counted(len(summary["sources"]), "file")
    console.print(f"{summary['suite']:<8} {total - missing} of {total} dimensions, from {files}", markup=False)
    for score in suite.scores:
        value = summary["scores"][score.name]
        if value is None:
            text = f"absent: {counted(len(summary['absent_scores'][score.name]), 'dimension')} of it missing"
        else:
            text = f"{value:.12f}"
        console.print(f"  {score.title:<32} {text}", markup=False)
    if not suite.scores:
        for dimension in suite.dimensions:
            value = summary["dimensions"][dimension.name]
            console.print(f"  {dimension.name:<32} {'missing' if value is None else f'{value:.12f}'}", markup=False)
    _print_tables(suite, summary)
    for line in remarks(summary):
        console.print(line, markup=False)


def remarks(summary: Mapping[str, Any]) -> list[str]:
    """One line for each dimension that is missing, incomplete or unknown, and each stated score that differs."""
    lines = [f"missing  {name}" for name in summary["missing"]]
    lines += [f"unknown  {one['name']} in {one['file']}. {one['hint']}".rstrip() for one in summary["unknown"]]
    lines += [
        f"partial  {name}: {one['videos']} of {one['of']} videos were scored, so that it is no official value"
        for name, one in summary["incomplete"].items()
    ]
    return lines + [
        f"differs  {name} is stated as {one['stated']:g}, but the dimensions give {one['computed']:.6f}"
        for name, one in summary["stated"].items()
        if one["agrees"] is False
    ]


def _print_tables(suite: Suite, summary: Mapping[str, Any]) -> None:
    """Print one table for each group of columns: the user's row, then the published rows of the main table."""
    titles = {dimension.name: dimension.title for dimension in suite.dimensions}
    titles |= {score.name: score.title for score in suite.scores}
    rows = summary["published"]
    main = [row for row in rows if row["table"] == rows[0]["table"]] if rows else []
    for keys in suite.tables or [columns(suite)]:
        heads = [titles[key] for key in keys]
        table = plain_table("percent", *heads, numbers=heads, unbroken=["percent", *heads])
        table.add_row(OURS, *(_cell(summary["row"][key]) for key in keys))
        for row in main:
            cells = [_cell(row["values"].get(key), key in row["misprints"]) for key in keys]
            table.add_row(f"{row['label']} ({row['table']})", *cells)
        console.print()
        print_table(table)
    notes = _notes(main)
    if notes:
        console.print()
    for note in notes:
        console.print(f"* {note}", markup=False)


def _notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each misprint, once where several columns have the same."""
    return list(
        dict.fromkeys(f"{row['table']}, {row['label']}: {text}" for row in rows for text in row["misprints"].values())
    )


def _cell(value: float | None, is_misprint: bool = False) -> str:
    return "-" if value is None else f"{value:.2f}{'*' if is_misprint else ''}"
