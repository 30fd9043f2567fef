"""Tables about the components of a training: energies, rewards, routing, and the time and memory of every part."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from guidedcd.documents import is_number
from guidedcd.evaluation.report.charts import short
from guidedcd.evaluation.report.curves import Log
from guidedcd.evaluation.report.run_files import RunFiles
from guidedcd.evaluation.report.score_tables import NOTHING, Cell, Row, Table
from guidedcd.training.log import REWARD_SHARE, SHARE, SHARE_BY_NOISE
from guidedcd.training.losses import NOISE_LEVELS

TIME, MEMORY, REWARD = "seconds/", "memory_gb/", "reward:"
"""Beginnings of the names of times, of memory, and of the parts that are single rewards."""


def components(files: RunFiles) -> list[Table]:
    """The tables that the log has numbers for."""
    tables = (routing(files.routing), energies(files.log), rewards(files.run, files.log), parts(files.log))
    return [table for table in tables if table]


def routing(numbers: Mapping[str, Any] | None) -> Table | None:
    """How many clips of the store feed each objective; None without numbers."""
    if numbers is None or not numbers["clips"]:
        return None
    total = numbers["clips"]
    objectives = {
        "consistency": total,
        **{f"energy {name}": count for name, count in numbers["energies"].items()},
        **{f"reward {name}": count for name, count in numbers["rewards"].items()},
    }
    if numbers["rewards"]:
        objectives["no reward"] = numbers["without_rewards"]
    rows = [
        Row(Cell(name), [Cell(f"{count:,}"), Cell(f"{100 * count / total:.0f} %")])
        for name, count in objectives.items()
    ]
    caption = "Routing: clips of the store that feed each objective; videos of the student's own are not among them"
    return Table(caption, [Cell("objective"), Cell("clips"), Cell("share")], rows)


def energies(log: Log) -> Table | None:
    """The median share of the prediction that each energy's guided term has, overall and by noise level."""
    names = _names(log, SHARE)
    if not names:
        return None
    levels = [f"{SHARE_BY_NOISE}{level}/" for level in range(1, NOISE_LEVELS + 1)]
    if not any(_values(log, level + name) for name in names for level in levels):
        levels = []  # a log of an older version
    head = ["energy", "all noise levels", *(f"quarter {number}" for number, _ in enumerate(levels, 1))]
    rows = [Row(Cell(name), [_percent(log, start + name) for start in (SHARE, *levels)]) for name in names]
    caption = "Energies: guided term as a share of the prediction, median over the log"
    if levels:
        caption += "; quarters of the solver's grid, 1 is the cleanest"
    return Table(caption, [Cell(text) for text in head], rows)


def rewards(run: Mapping[str, Any], log: Log) -> Table | None:
    """Weight, scores at both ends, routed share of samples and share of the gradient of every reward."""
    names = dict.fromkeys([*run.get("rewards", {}), *_names(log, "routed/")])
    if not names or not log:
        return None
    rows = []
    for name in names:
        weight, values = run.get("rewards", {}).get(name, {}).get("weight"), _values(log, f"reward/{name}")
        tenth = max(1, len(values) // 10)
        ends = [Cell(short(statistics.fmean(some))) if some else NOTHING for some in (values[:tenth], values[-tenth:])]
        routed = _values(log, f"routed/{name}")
        sent = Cell(f"{100 * statistics.fmean(routed):.0f} %") if routed else NOTHING
        weight_cell = Cell(f"{weight:g}") if is_number(weight) else NOTHING
        rows.append(Row(Cell(name), [weight_cell, *ends, sent, _percent(log, REWARD_SHARE + name)]))
    head = (
        "reward",
        "weight",
        "score, first tenth",
        "score, last tenth",
        "predictions routed to it",
        "share of the gradient",
    )
    caption = (
        "Rewards and routing: mean shares of predictions over the log; the share of the gradient is the norm of the "
        "weighted reward's gradient on its frames divided by the sum of all rewards', median over the log"
    )
    return Table(caption, [Cell(text) for text in head], rows)


def parts(log: Log) -> Table | None:
    """The median time of each part of a step, its share, and the memory in use at its end."""
    names = _names(log, TIME)
    if not names:
        return None
    medians = {name: statistics.median(_values(log, TIME + name)) for name in names}
    total = sum(seconds for name, seconds in medians.items() if not name.startswith(REWARD))
    rows = []
    for name in [one for part in names if not part.startswith(REWARD) for one in _with_rewards(part, names)]:
        memory = _values(log, MEMORY + name)
        cells = [Cell(_seconds(medians[name])), Cell(f"{100 * medians[name] / total:.0f} %" if total else "-")]
        cells.append(Cell(f"{statistics.median(memory):.2f} GB") if memory else NOTHING)
        title = f"reward {name.removeprefix(REWARD)}" if name.startswith(REWARD) else name
        rows.append(Row(Cell(title, "included in rewards" if name.startswith(REWARD) else None), cells))
    head = ("part of a step", "time", "share of the step", "GPU memory at its end")
    return Table("Time and memory of a training step, medians over the log", [Cell(text) for text in head], rows)


def _with_rewards(part: str, names: Sequence[str]) -> list[str]:
    """A part, followed by the single rewards after all rewards."""
    return [part, *(name for name in names if name.startswith(REWARD))] if part == "rewards" else [part]


def _names(log: Log, start: str) -> list[str]:
    """The rest of the keys that begin with `start`."""
    return list(dict.fromkeys(key.removeprefix(start) for line in log for key in line if key.startswith(start)))


def _values(log: Log, key: str) -> list[float]:
    return [line[key] for line in log if is_number(line.get(key))]


def _percent(log: Log, key: str) -> Cell:
    """The median of a share in the log."""
    values = _values(log, key)
    return Cell(f"{short(100 * float(f'{statistics.median(values):.3g}'))} %") if values else NOTHING


def _seconds(value: float) -> str:
    return f"{1000 * value:.1f} ms" if value < 1 else f"{value:.2f} s"
