"""The curves of a training log, in the order in which reports show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from guidedcd.documents import is_number
from guidedcd.evaluation.report.charts import Chart, Point, line_chart
from guidedcd.training.log import BY_NOISE, REWARD_SHARE, SHARE

Log = Sequence[Mapping[str, Any]]
Curves = dict[str, list[Point]]
"""Points (step, value) by name."""

NOISE = "Consistency loss by noise level (1 is the cleanest quarter)"


def curves(log: Log) -> dict[str, Curves]:
    """By title of a chart, its curves; charts and curves without a point are left out."""
    losses = {"total": points(log, "loss"), "consistency": points(log, "cd_loss")}
    if losses["total"] == losses["consistency"]:
        losses.pop("total")
    charts = {
        "Loss": losses,
        NOISE: _beginning(log, BY_NOISE, in_order=True),
        **{f"Reward {name} (higher is better)": {name: one} for name, one in _beginning(log, "reward/").items()},
        "Energy's guided term relative to the prediction": _beginning(log, SHARE),
        "Rewards' shares of the gradient on the frames": _beginning(log, REWARD_SHARE),
        "Norm of the gradient": {"norm": points(log, "grad_norm")},
        "Share of samples that each reward scored": _beginning(log, "routed/"),
        "Samples per second": {"speed": points(log, "samples_per_second")},
        "GPU memory, GB": {"memory": points(log, "memory_gb")},
    }
    filled = {title: {name: one for name, one in named.items() if one} for title, named in charts.items()}
    return {title: named for title, named in filled.items() if named}


def charts(log: Log) -> list[Chart]:
    """A chart of every title, without those that have no finite point."""
    return drawn(line_chart(title, named) for title, named in curves(log).items())


def overlaid(logs: Mapping[str, Log]) -> list[Chart]:
    """A chart of every curve that a log has, with a line for each run that has it.

    Args:
        logs: By name of the run.
    """
    titled: dict[str, Curves] = {}
    for run, log in logs.items():
        for title, named in curves(log).items():
            for name, one in named.items():
                alone = len(named) == 1 and title not in ("Loss", NOISE)
                titled.setdefault(title if alone else f"{title}: {name}", {})[run] = one
    return drawn(line_chart(title, by_run) for title, by_run in titled.items())


def drawn(charts: Iterable[Chart | None]) -> list[Chart]:
    """The charts that have a point."""
    return [chart for chart in charts if chart]


def points(log: Log, key: str) -> list[Point]:
    """The numbers of one key by step."""
    return [(line["step"], line[key]) for line in log if is_number(line.get(key))]


def _beginning(log: Log, start: str, *, in_order: bool = False) -> Curves:
    """The curves of the keys that begin with `start`, by the rest of the key; as first logged, or in order."""
    keys = dict.fromkeys(key for line in log for key in line if key.startswith(start))
    return {key.removeprefix(start): points(log, key) for key in (sorted(keys) if in_order else keys)}
