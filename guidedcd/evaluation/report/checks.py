"""The section of the report about the sentinel's checks: scores over training, and alarms with their evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from guidedcd.data import media
from guidedcd.documents import is_number
from guidedcd.evaluation.report.charts import Chart, line_chart
from guidedcd.evaluation.report.curves import drawn
from guidedcd.evaluation.report.videos import inside
from guidedcd.training.alarms import average
from guidedcd.training.sentinel import FILE, FOLDER, read_checks

SHOWN = 2
"""Contact sheets in the report: the check before the last alarm's and the alarm's own."""


@attrs.frozen
class Checks:
    """What the report shows of a sentinel."""

    charts: list[Chart]
    alarms: list[tuple[int, str]]
    """Step and reason of every alarm."""
    sheets: list[tuple[int, str]]
    """Step and image, as a data address, of the evidence."""


def checks(folder: Path) -> Checks | None:
    """The sentinel's section of a run; None without a sentinel."""
    _, *lines = read_checks(folder / FILE) or [{}]
    if not lines:
        return None
    charts = [
        line_chart("Trained rewards on the sentinel's prompts", _curves(lines, "rewards")),
        line_chart("Judges that train nothing (higher is better)", _curves(lines, "judges")),
        line_chart("Statistics of the videos", _curves(lines, "drift")),
    ]
    alarms = [(line["step"], text) for line in lines for text in line["alarms"]]
    steps = [line["step"] for line in lines]
    shown = [step for step in steps if step <= alarms[-1][0]][-SHOWN:] if alarms else []
    sheets = [(step, sheet) for step in shown if (sheet := _sheet(folder, step))]
    return Checks(drawn(charts), alarms, sheets)


def _curves(lines: Sequence[Mapping[str, Any]], kind: str) -> dict[str, list[tuple[float, float]]]:
    """Means over the prompts by name."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for name, values in line[kind].items():
            mean = average(value for value in values if is_number(value))
            if is_number(mean):
                curves.setdefault(name, []).append((line["step"], mean))
    return curves


def _sheet(folder: Path, step: int) -> str | None:
    path = inside(folder, f"{FOLDER}/step-{step:06d}.png")
    return media.data_uri(path.read_bytes(), "image/png") if path else None
