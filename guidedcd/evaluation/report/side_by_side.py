"""The report of several runs: the options in which they differ, their scores, and their curves in the same charts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guidedcd.console import counted, duration, latency
from guidedcd.evaluation import tables
from guidedcd.evaluation.pairing import Differences, differences, distinct_names, refuse_repeated, unlike
from guidedcd.evaluation.report.curves import overlaid
from guidedcd.evaluation.report.options import differing, options_table
from guidedcd.evaluation.report.run_files import RunFiles
from guidedcd.evaluation.report.score_tables import NOTHING, Cell, Row, Table, difference_cell, score_cell
from guidedcd.evaluation.report.template import rendered
from guidedcd.files import replacing

FILE = "comparison.html"
"""Name of the page, by default in the current folder."""


def write_comparison(folders: Sequence[str | Path], *, out: Path | None = None) -> Path:
    """Write one page about several runs, which are paired with the first; nothing is measured.

    Args:
        folders: Run folders, two or more.
        out: The HTML file, by default comparison.html in the current folder.

    Returns:
        The HTML file.

    Raises:
        GuidedCDError: A folder contains no run or is given twice, or a file in it is damaged.
    """
    paths = [Path(folder) for folder in folders]
    refuse_repeated(paths)
    files = [RunFiles.read(path) for path in paths]
    named = dict(zip(distinct_names([one.name for one in files], paths), files, strict=True))
    out = Path(FILE if out is None else out)
    with replacing(out) as partial:
        partial.write_text(_page(named), encoding="utf-8", errors="backslashreplace")
    return out


def _page(runs: dict[str, RunFiles]) -> str:
    evaluated = {name: one.evaluation for name, one in runs.items() if one.evaluation}
    first = next(iter(evaluated.values()), None)
    alike = {name: one for name, one in evaluated.items() if first is not None and not unlike(first, one)}
    paired = differences(alike) if alike else {}
    return rendered(
        "comparison.html.j2",
        title=" and ".join(runs) if len(runs) == 2 else counted(len(runs), "run"),
        runs=_runs(runs),
        options=options_table("Options that differ", list(runs), differing([one.run for one in runs.values()])),
        scores=[_scores(evaluated, paired, split) for split in _splits(evaluated)],
        unpaired=_unpaired(evaluated),
        missing=[name for name in runs if name not in evaluated],
        fewest=tables.FEWEST,
        charts=overlaid({name: one.log for name, one in runs.items()}),
    )


def _runs(runs: dict[str, RunFiles]) -> Table:
    """One row for each run: its folder, steps and duration, and the time of a video."""
    rows = []
    for name, one in runs.items():
        last = one.log[-1] if one.log else {}
        student = _student(one.evaluation) if one.evaluation else {}
        cells = [
            Cell(f"{last['step']:,}") if last else NOTHING,
            Cell(duration(last["seconds"])) if "seconds" in last else NOTHING,
            Cell(f"{last['memory_gb']:g} GB") if "memory_gb" in last else NOTHING,
            Cell(latency(student["seconds"])) if student.get("seconds") is not None else NOTHING,
        ]
        rows.append(Row(Cell(name, str(one.folder)), cells))
    heads = ("run", "steps", "training time", "peak GPU memory", "time of a video")
    return Table("Runs", [Cell(text) for text in heads], rows)


def _splits(evaluated: dict[str, tables.Evaluation]) -> list[str]:
    return list(dict.fromkeys(split for one in evaluated.values() for split in one["splits"]))


def _scores(evaluated: dict[str, tables.Evaluation], paired: Differences, split: str) -> Table:
    """The students' scores on the prompts of one split, and each paired difference from the first run."""
    having = {name: one for name, one in evaluated.items() if split in one["splits"]}
    first = next(iter(evaluated))
    keys = dict.fromkeys(key for one in having.values() for key in tables.scores_of(one, split))
    about = next(iter(having.values()))
    rows = []
    for key in keys:
        cells = [_score(one, split, key) for one in having.values()]
        cells += [_difference(evaluated[first], paired, name, split, key) for name in having if name != first]
        words = [(tables.title(one, key), tables.sense(one, key)) for one in having.values()]
        name, sense = max(words, key=lambda pair: sum(map(len, pair)))  # a run without this score has its key alone
        note = ", ".join(text for text in (key, sense) if text and text != name)
        rows.append(Row(Cell(name, note), cells, highlighted=key in tables.headlines(about)))
    counts = {len(one["splits"][split]["prompts"]) for one in having.values()}
    number = f"{counts.pop()} " if len(counts) == 1 else ""
    heads = [Cell("score"), *(Cell(name, _settings(one)) for name, one in having.items())]
    heads += [Cell(f"{name} minus {first}") for name in having if name != first]
    return Table(f"{number}{about['splits'][split]['title']}", heads, rows)


def _student(evaluation: tables.Evaluation) -> Any:
    return next(row for row in evaluation["rows"] if row["name"] == tables.OURS)


def _settings(evaluation: tables.Evaluation) -> str:
    return f"{_student(evaluation)['label']}, {tables.settings(_student(evaluation))}"


def _score(evaluation: tables.Evaluation, split: str, key: str) -> Cell:
    return score_cell(_student(evaluation)["scores"].get(split, {}).get(key))


def _difference(first: tables.Evaluation, paired: Differences, run: str, split: str, key: str) -> Cell:
    return difference_cell(first, paired.get((run, split, key)), key)


def _unpaired(evaluated: dict[str, tables.Evaluation]) -> list[tuple[str, str, str]]:
    """(run, first run, setting that differs) of every run that cannot be paired with the first."""
    if not evaluated:
        return []
    (first, evaluation), *others = evaluated.items()
    settings = [(name, unlike(evaluation, other)) for name, other in others]
    return [(name, first, key) for name, key in settings if key]
