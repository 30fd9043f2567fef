"""The tables of `guidedcd plan`."""

from __future__ import annotations

from typing import Any

from guidedcd.config.run import Run
from guidedcd.console import console, latency, print_table
from guidedcd.planning.estimate import Estimator, Stage, usable
from guidedcd.planning.gpus import GB, Machine
from guidedcd.preprocessing.estimates import passes


def stages(run: Run, where: Machine, processes: int, costs: dict[str, Stage], estimator: Estimator) -> None:
    """Print the device, the work and the cost of the stages."""
    many = f", {processes} of them" if processes > 1 else ""
    console.print(
        f"device   {where.name}{many}: {where.half / 1e12:.3g} TFLOP/s in 16 bits, {where.single / 1e12:.3g} in 32, "
        f"{where.bandwidth / 1e12:.3g} TB/s ({where.source}); {usable(where) / GB:.1f} GB usable"
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
    rows = [["", "each", "device-hours", "hours", "peak GB", "disk GB", "largest batch"]]
    for name, stage in costs.items():
        numbers = (stage.device_hours, stage.hours, stage.peak_gb, stage.disk_gb, stage.largest_batch)
        each = latency(stage.each_seconds, 3) + (" a video" if name == "preprocess" else " a step")
        rows.append([name, each, *map(_number, numbers)])
    _table(rows)


def cheaper(changes: list[dict[str, Any]]) -> None:
    """Print the savings of other settings."""
    rows = [["cheaper", "device-hours", "peak GB", "disk GB", ""]]
    for one in changes:
        figures = (one.get(name) for name in ("device_hours", "peak_gb", "disk_gb"))
        rows.append([one["flags"], *(" -> ".join(map(_number, c)) if c else "" for c in figures), one["note"]])
    if changes:
        _table(rows)


def probed(probe: dict[str, Any]) -> None:
    """Print predictions beside measurements."""
    rows = [["probe", "predicted", "measured", "ratio", "whole run"]]
    for one in probe["rows"]:
        row = [one["what"], _figure(one["predicted"], one["unit"])]
        if one["measured"] is None:
            rows.append([*row, "-", "", one["why"]])
            continue
        whole = f"{_number(one['device_hours'])} device-hours" if "device_hours" in one else ""
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


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
