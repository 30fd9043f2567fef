"""The tables of `guidedcd plan`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from guidedcd.config.run import Run
from guidedcd.console import console, duration, duration_range, file_size, latency, print_table
from guidedcd.errors import written
from guidedcd.planning.decode_cost import DecodeCost
from guidedcd.planning.estimate import Estimator, Stage, usable
from guidedcd.planning.gpus import GIB, Machine
from guidedcd.preprocessing.estimates import passes

BUSY = 1.2
"""Slowdown by other work from which it is printed."""


def stages(run: Run, where: Machine, processes: int, costs: dict[str, Stage], estimator: Estimator) -> None:
    """Print the device, the work and the cost of the stages."""
    many = f", {processes} of them" if processes > 1 else ""
    console.print(
        f"device   {where.name}{many}: {where.half / 1e12:.3g} TFLOP/s in 16 bits, {where.single / 1e12:.3g} in 32, "
        f"{where.bandwidth / 1e12:.3g} TB/s ({where.source}); {usable(where) / GIB:.1f} GiB usable"
    )
    counted, one, settings = passes(run), estimator.teaching(run), run.preprocess
    console.print(
        f"store    {settings.videos:,} videos, {settings.draws_per_video} draws each; one takes "
        f"{counted.inversion:.4g} inversion steps, {counted.scored:.3g} scored and {counted.plain:.3g} plain draws: "
        f"{one.flops() / 1e12:.4g} TFLOP, {one.forward.flops / one.batch / 2e12:.4g} a pass"
    )
    step = estimator.training(run)
    console.print(
        f"train    {run.train.steps:,} steps of {run.train.batch_size * run.train.accumulate * processes} samples, "
        f"{run.student.kind}, {step.trained / 1e6:,.4g} M weights: a batch takes {step.step.flops / 1e12:.4g} TFLOP"
        + (f", and {step.rewards.flops / 1e12:.4g} for rewards" if step.rewards else "")
    )
    shared = processes > 1
    rows = [["", "each", "time", *(["device time"] if shared else []), "peak GiB", "disk", "largest batch"]]
    for name, stage in costs.items():
        rows.append(
            [
                name,
                latency(stage.each_seconds, 3) + (" a step" if name == "train" else " a video"),
                _hours(stage.hours_range),
                *([duration(3600 * stage.device_hours)] if shared else []),
                "" if stage.peak_gib is None else _number(stage.peak_gib),
                file_size(1e9 * stage.disk_gb) if stage.disk_gb else "",
                "" if stage.largest_batch is None else _number(stage.largest_batch),
            ]
        )
    low, high = (sum(stage.hours_range[end] for stage in costs.values()) for end in (0, 1))
    whole = duration(3600 * sum(stage.device_hours for stage in costs.values()))
    rows.append(["together", "", _hours((low, high)), *([whole] if shared else [])])
    _table(rows)
    if where.slowdown > BUSY:
        console.print(f"time     other work on this machine makes a pass {where.slowdown:.1f} times slower now")
    console.print("time     without loading models and videos, metrics, validation and compilation")


def cheaper(changes: list[dict[str, Any]]) -> None:
    """Print the savings of other settings."""
    rows = [["cheaper", "device time", "peak GiB", "disk", ""]]
    forms: dict[str, Callable[[float], str]] = {
        "device_hours": lambda hours: duration(3600 * hours),
        "peak_gib": _number,
        "disk_gb": lambda count: file_size(1e9 * count),
    }
    for one in changes:
        cells = (" -> ".join(map(form, one[name])) if name in one else "" for name, form in forms.items())
        rows.append([written(one["flags"]), *cells, one["note"]])
    if changes:
        _table(rows)


def decodings(costs: Sequence[DecodeCost], errors: Mapping[str, float] | None) -> None:
    """Print the ways to decode for rewards; `errors` are those that a probe measured."""
    rows = [["decoding for rewards, a video", "time", "peak GiB", "error", ""]]
    for one in costs:
        name = f"{one.policy} (chosen)" if one.chosen else one.policy
        if one.seconds is None or one.peak_gib is None:
            rows.append([name, "", "", "", one.why])
            continue
        error = "0" if one.policy == "full" else "" if errors is None else f"{errors.get(one.policy, math.nan):.2g}"
        rows.append([name, latency(one.seconds, 3), _number(one.peak_gib), error, ""])
    _table(rows)
    measured = "with --probe" if errors is None else "of the run's own clips"
    console.print(f"error    root mean square of pixels in [0, 1] against full, {measured}")


def probed(probe: dict[str, Any]) -> None:
    """Print predictions beside measurements."""
    rows = [["probe", "predicted", "measured", "ratio", "whole run"]]
    for one in probe["rows"]:
        row = [one["what"], _figure(one["predicted"], one["unit"])]
        if one["measured"] is None:
            rows.append([*row, "-", "", one["why"]])
            continue
        whole = duration(3600 * one["device_hours"]) if "device_hours" in one else ""
        ratio = f"{one['measured'] / one['predicted']:.2f}"
        rows.append([*row, _figure(one["measured"], one["unit"]), ratio, whole])
    _table(rows)
    console.print(f"probe    took {probe['seconds']:.0f} s")


def _table(rows: list[list[str]]) -> None:
    from rich.table import Table

    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows[1:]:
        table.add_row(*row)
    console.print()
    print_table(table)
    console.print()


def _figure(value: float, unit: str) -> str:
    return latency(value, 3) if unit == "s" else f"{_number(value)} {unit}"


def _hours(limits: tuple[float, float]) -> str:
    low, high = limits
    return duration_range(3600 * low, 3600 * high)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
