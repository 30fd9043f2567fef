"""Tables of an evaluation for the terminal, and a summary in sentences. No torch.

The argument `evaluation` is the content of an evaluation.json, see `guidedcd.evaluation.evaluate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from guidedcd.console import counted, latency
from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError, shortened

Evaluation = Mapping[str, Any]
OURS = "student"
"""Name of the row that is compared with the others."""
FEWEST = 10
"""A difference over fewer prompts is never certain, since resamples of few prompts are too similar."""
COLORS = {"good": "green", "bad": "red"}
"""Colours of differences that are certain and whose better direction is known."""
LOOK: dict[str, Any] = {"box": box.SIMPLE_HEAD, "pad_edge": False, "title_justify": "left", "title_style": "bold"}


_SCORE = {"mean": (float, None), "low": (float, None), "high": (float, None)}
_ROW = {
    "name": str,
    "label": str,
    "steps?": (int, None),
    "evaluations?": (int, None),
    "omega?": (float, None),
    "solver?": (str, None),
    "scales?": ({str: float}, None),
    "source?": str,
    "seconds?": (float, None),
    "scores": {str: {str: {**_SCORE, "n?": (int, None), "values?": [(float, None)]}}},
}
FORM = {
    "run": str,
    "student?": str,
    "machine?": str,
    "seeds": [int],
    "steps?": int,
    "asked?": {},
    "splits": {str: {"title": str, "prompts": [str]}},
    "choice": {
        "prompts": (int, str),
        "tried": [{**_SCORE, "label": str, "steps": int, "solver": str, "omega": float, "score": str, "chosen": bool}],
    },
    "metrics": {str: {"title?": str, "better?": str}},
    "headline?": (str, None),
    "headlines?": [str],
    "against": str,
    "rows": [_ROW],
    "differences": [{**_SCORE, "row": str, "against": str, "split": str, "score": str, "n": int}],
    "videos?": [{"prompt": str, "panes": [{"row": str, "label": str, "file": str}]}],
    "summary?": str,
}
"""Form of evaluation.json; see `guidedcd.documents`."""


def read(path: Path) -> dict[str, Any]:
    """The content of an evaluation.json.

    Raises:
        GuidedCDError: The file is missing or damaged.
    """
    evaluation = read_json(path, FORM)
    names = {row["name"] for row in evaluation["rows"]}
    for name in (OURS, evaluation["against"]):
        if name not in names:
            raise GuidedCDError(f"{path} is damaged: it has no row '{shortened(name)}'.")
    return evaluation


def read_if_there(folder: Path) -> dict[str, Any] | None:
    """The evaluation in a folder, None without one.

    Raises:
        GuidedCDError: The file is damaged.
    """
    path = folder / "evaluation.json"
    return read(path) if path.is_file() else None


def figure(value: float | None) -> str:
    """A score with three digits after the point, or "-" where there is none."""
    return "-" if value is None else f"{value:.3f}"


def signed(value: float | None, digits: int = 3) -> str:
    """A difference with its sign, e.g. "+0.125", zero without a sign, or "-" without a value."""
    if value is None:
        return "-"
    return f"{value:+.{digits}f}" if round(value, digits) else f"{0:.{digits}f}"


def interval(score: Mapping[str, Any] | None, form: Any = figure) -> str:
    """The limits of an interval, e.g. "0.812 to 0.943", or "" without one."""
    return "" if not score or score.get("low") is None else f"{form(score['low'])} to {form(score['high'])}"


def scores_of(evaluation: Evaluation, split: str) -> list[str]:
    """Names of the scores of a split, those of the summary first."""
    keys: dict[str, None] = {}
    for row in evaluation["rows"]:
        for key, score in row["scores"].get(split, {}).items():
            if score["mean"] is not None:
                keys[key] = None
    first = headlines(evaluation)
    return sorted(keys, key=lambda key: first.index(key) if key in first else len(first))


def headlines(evaluation: Evaluation) -> list[str]:
    """The scores of the summary: that for choosing settings, then those that metrics list besides."""
    first = evaluation.get("headline")
    return list(dict.fromkeys([*([first] if first else []), *evaluation.get("headlines", ())]))


def title(evaluation: Evaluation, key: str) -> str:
    """The title of a score."""
    return evaluation["metrics"].get(key, {}).get("title", key)


def sense(evaluation: Evaluation, key: str) -> str:
    """ "higher is better", "lower is better", or "" where the direction is unknown."""
    better = evaluation["metrics"].get(key, {}).get("better", "")
    return f"{better} is better" if better else ""


def short_title(evaluation: Evaluation, key: str) -> str:
    """The name of a score for a narrow column, with an arrow in the better direction."""
    arrow = {"higher": " ↑", "lower": " ↓"}.get(evaluation["metrics"].get(key, {}).get("better", ""), "")
    return key.replace("_", " ") + arrow


def settings(row: Mapping[str, Any]) -> str:
    """The settings of a row, e.g. "8 network calls, ddim, omega 7.5, 3.2 s per video"."""
    words = []
    if row.get("evaluations"):
        words.append(f"{row['evaluations']} network calls")
    if row.get("solver"):
        words.append(row["solver"])
    if row.get("omega") is not None:
        words.append(f"omega {row['omega']:g}")
    words += [f"{name} {value:g}" for name, value in (row.get("scales") or {}).items()]
    if row.get("seconds") is not None:
        words.append(f"{latency(row['seconds'])} per video")
    if row.get("source", "measured") != "measured":
        words.append(row["source"])
    return ", ".join(words)


def difference(evaluation: Evaluation, against: str, split: str, key: str) -> Mapping[str, Any] | None:
    """The paired difference of the student and the row `against`."""
    for paired in evaluation["differences"]:
        if (paired["row"], paired["against"], paired["split"], paired["score"]) == (OURS, against, split, key):
            return paired
    return None


def verdict(evaluation: Evaluation, paired: Mapping[str, Any] | None, key: str) -> str:
    """ "good" or "bad" where a difference is certain and its better direction is known, else ""."""
    better = evaluation["metrics"].get(key, {}).get("better")
    if not paired or paired["low"] is None or not better or paired["n"] < FEWEST:
        return ""
    if paired["low"] <= 0 <= paired["high"]:
        return ""
    return "good" if (paired["low"] > 0) == (better == "higher") else "bad"


def tables(evaluation: Evaluation) -> list[Table]:
    """One table per split: a row per score, a column per arm, and the paired difference in the last column."""
    rows, against = evaluation["rows"], evaluation["against"]
    few = next(row for row in rows if row["name"] == against)
    result: list[Table] = []
    for split, about in evaluation["splits"].items():
        seeds = len(evaluation["seeds"])
        table = Table(
            title=f"{about['title']}: {len(about['prompts'])}" + (f", {seeds} seeds each" if seeds > 1 else ""),
            **LOOK,
        )
        table.add_column("")
        for row in rows:
            table.add_column(row["label"].replace(", ", "\n"), justify="right")
        table.add_column("student -\n" + few["label"].replace(", ", " "), justify="right")
        if not result:
            for name, texts in _settings_down(rows):
                table.add_row(f"[dim]{name}[/]", *(f"[dim]{text}[/]" for text in texts), "")
            table.add_section()
        for key in scores_of(evaluation, split):
            cells = [_cell(row["scores"].get(split, {}).get(key)) for row in rows]
            paired = difference(evaluation, against, split, key)
            table.add_row(short_title(evaluation, key), *cells, _cell(paired, signed, verdict(evaluation, paired, key)))
        result.append(table)
    return result


def _settings_down(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """The settings of all rows, one line per setting."""
    energies = dict.fromkeys(name for row in rows for name in row.get("scales") or {})
    lines: dict[str, list[str]] = {
        "network calls": [str(row.get("evaluations") or "") for row in rows],
        "solver": [row.get("solver") or "" for row in rows],
        "omega": ["" if row.get("omega") is None else f"{row['omega']:g}" for row in rows],
        **{name: [f"{(row.get('scales') or {}).get(name, '')}" for row in rows] for name in energies},
        "time per video": ["" if row.get("seconds") is None else latency(row["seconds"]) for row in rows],
    }
    return [(name, texts) for name, texts in lines.items() if any(texts)]


def _cell(score: Mapping[str, Any] | None, form: Any = figure, sense: str = "") -> str:
    """A mean with its interval in the next line."""
    if not score or score["mean"] is None:
        return "-"
    mean = f"[{COLORS[sense]}]{form(score['mean'])}[/]" if sense else form(score["mean"])
    if score["low"] is None:
        return mean
    low, high = (signed(score[key], 2) if form is signed else f"{score[key]:.2f}" for key in ("low", "high"))
    return f"{mean}\n[dim]{low}..{high}[/]"


def summary(evaluation: Evaluation) -> str:
    """Sentences about the headline on the first split, and about the metrics' further headlines on every split.

    Evaluations without further headlines have one about motion where no prompt names any.
    """
    rows = {row["name"]: row for row in evaluation["rows"]}
    ours, few = rows[OURS], rows[evaluation["against"]]
    key, split, still = evaluation.get("headline"), next(iter(evaluation["splits"])), "no-motion"
    if key and ours["scores"][split].get(key, {}).get("mean") is not None:
        sentences = [_against(evaluation, rows, split, key)]
    else:
        slower = f" and the {_called(few)} {latency(few['seconds'])}" if few.get("seconds") is not None else ""
        took = latency(ours["seconds"]) if ours.get("seconds") is not None else "-"
        sentences = [f"One video takes the {_called(ours)} {took}{slower}."]
    further = [
        _against(evaluation, rows, name, one, of_split=True)
        for one in evaluation.get("headlines", ())
        for name in evaluation["splits"]
        if (one, name) != (key, split) and _is_compared(evaluation, name, one)
    ]
    if further:
        return " ".join([*sentences, *further])
    moves = "speed" if "speed" in ours["scores"].get(still, {}) else "flow_px"
    paired = difference(evaluation, few["name"], still, moves)
    if paired and paired["mean"] is not None:
        student_speed, teacher_speed = (row["scores"][still][moves]["mean"] for row in (ours, few))
        sentences.append(
            f"Where the prompt names no motion, the student's videos move by {student_speed:.2f} pixels per frame, "
            f"the teacher's by {teacher_speed:.2f} ({_in_words(paired, 2)})."
        )
    return " ".join(sentences)


def _is_compared(evaluation: Evaluation, split: str, key: str) -> bool:
    """Whether student and few-step teacher have a score on a split, and a paired difference."""
    paired = difference(evaluation, evaluation["against"], split, key)
    measured = [row for row in evaluation["rows"] if row["name"] in (OURS, evaluation["against"])]
    means = [row["scores"].get(split, {}).get(key, {}).get("mean") for row in measured]
    return paired is not None and paired["mean"] is not None and None not in means


def _against(
    evaluation: Evaluation, rows: Mapping[str, Mapping[str, Any]], split: str, key: str, *, of_split: bool = False
) -> str:
    ours, few = rows[OURS], rows[evaluation["against"]]
    name = evaluation["metrics"].get(key, {}).get("title", key)
    count, about = ours["scores"][split][key]["n"], evaluation["splits"][split]
    compared = counted(count, "prompt")
    if of_split:
        total = len(about["prompts"])
        compared = f"{count if count == total else f'{count} of {total}'} {about['title']}"
    sentence = (
        f"{name[:1].upper()}{name[1:]} ({compared}): "
        f"{figure(ours['scores'][split][key]['mean'])} for the {_called(ours)}, "
        f"{figure(few['scores'][split][key]['mean'])} for the {_called(few)}"
    )
    paired = difference(evaluation, few["name"], split, key)
    if paired is None or paired["mean"] is None:
        return sentence + "."
    if paired["low"] is None or not evaluation["metrics"].get(key, {}).get("better"):
        return f"{sentence} ({_in_words(paired)})."
    verdicts = {"good": "better", "bad": "worse"}
    meaning = verdicts.get(verdict(evaluation, paired, key), "no significant difference at the 95 % level")
    return f"{sentence}: {meaning} ({_in_words(paired)})."


def _called(row: Mapping[str, Any]) -> str:
    """A row in a sentence, e.g. "student (4 steps, 4 network calls)"."""
    who, _, steps = row["label"].partition(", ")
    return f"{who} ({steps}, {row['evaluations']} network calls)"


def _in_words(paired: Mapping[str, Any], digits: int = 3) -> str:
    """A difference in a sentence."""
    mean, low, high = (signed(paired[key], digits) for key in ("mean", "low", "high"))
    if paired["low"] is None:
        return f"difference {mean}, of too few prompts for an interval"
    return f"{mean}, 95 % interval {low} to {high}"


def comparison(
    evaluations: Sequence[tuple[str, Evaluation]], differences: Mapping[tuple[str, str, str], Mapping[str, Any]]
) -> list[Table]:
    """One table per split of the first run, with a column for the student of each run.

    Args:
        evaluations: Pairs of a run's name and its evaluation.
        differences: Each run's student minus the first run's, by (run, split, score).
    """
    first = evaluations[0][1]
    few = next(row for row in first["rows"] if row["name"] == first["against"])
    rows = [next(row for row in e["rows"] if row["name"] == OURS) for _, e in evaluations] + [few]
    result: list[Table] = []
    for split, about in first["splits"].items():
        table = Table(
            title=f"{about['title']}: {len(about['prompts'])}",
            caption=f"below each: paired difference from {evaluations[0][0]} with its 95 % interval",
            caption_justify="left",
            **LOOK,
        )
        table.add_column("")
        for name, _ in evaluations:
            table.add_column(name, justify="right")
        table.add_column(few["label"].replace(", ", "\n"), justify="right")
        for name, texts in _settings_down(rows):
            table.add_row(f"[dim]{name}[/]", *(f"[dim]{text}[/]" for text in texts))
        table.add_section()
        for key in scores_of(first, split):
            cells = []
            for (name, _), row in zip(evaluations, rows, strict=False):
                score = row["scores"].get(split, {}).get(key)
                paired = differences.get((name, split, key))
                mean = figure(score and score["mean"])
                cells.append(f"{mean}\n{_cell(paired, signed, verdict(first, paired, key))}" if paired else mean)
            score = few["scores"].get(split, {}).get(key)
            table.add_row(short_title(first, key), *cells, figure(score and score["mean"]))
        result.append(table)
    return result
