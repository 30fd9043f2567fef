"""The options in which runs differ. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from guidedcd.config.kinds import KINDS
from guidedcd.evaluation.report.score_tables import Cell, Row, Table

IGNORED = ("command", "name", "plugin_files")
"""Keys of run.json that describe no property of the run."""
SPELLINGS = {"guidedcd": "guidedcd, of the training", "energy": "energies"}
"""Names of keys in the table; older runs have `energy`."""

Difference = tuple[str, list[str]]
"""An option's path, and its value in each run."""


def differing(runs: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """The options that differ between runs, in their order of appearance.

    A component that not all runs have is named once, by the selection of its kind. Its options are compared between
    the runs that have it.

    Args:
        runs: Contents of run.json.
    """
    flat = [dict(_flat(run)) for run in runs]
    paths = dict.fromkeys(path for options in flat for path in options)
    rows = []
    for path in paths:
        values = [options.get(path) for options in flat]
        present = [value for value in values if value is not None]
        # What only one run has is an option of a component, or of a newer guidedcd; its selection is a row of its own.
        if len(set(present)) > 1:
            rows.append((path, ["-" if value is None else value for value in values]))
    return rows


def options_table(title: str, heads: Sequence[str], differences: Sequence[Difference]) -> Table | None:
    """A table of options and their values under `heads`, one for each run; None without a difference."""
    rows = [Row(Cell(path), [Cell(value) for value in values]) for path, values in differences]
    return Table(title, [Cell("option"), *map(Cell, heads)], rows) if rows else None


def _flat(run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Path and value of every option, and the names of the components of each kind."""
    for written, value in run.items():
        key = SPELLINGS.get(written, written)
        if key in KINDS:
            listed = value if isinstance(value, list) else [value]
            components = [(name, options) for one in listed for name, options in one.items()]
            yield key, ", ".join(name for name, _ in components) or "none"
            seen: dict[str, int] = {}
            for name, options in components:
                seen[name] = seen.get(name, 0) + 1  # a dataset may be mixed with itself
                yield from _options(f"{key}.{name}{'' if seen[name] == 1 else f' ({seen[name]})'}", options)
        elif written not in IGNORED:
            yield from _options(key, value)


def _options(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _options(f"{path}.{name}", one)
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
