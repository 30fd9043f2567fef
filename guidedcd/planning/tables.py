"""A plan on the terminal."""

from __future__ import annotations

from typing import Any

from guidedcd.config.run import Run
from guidedcd.console import console, print_table
from guidedcd.planning.estimate import Estimator, Stage, usable
from guidedcd.planning.gpus import GB, Machine
from guidedcd.preprocessing.estimates import passes


def stages(run: Run, where: Machine, processes: int, found: dict[str, Stage], estimator: Estimator) -> None:
    """What the stages take, and what they do."""
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
    for name, stage in found.items():
        numbers = (stage.device_hours, stage.hours, stage.peak_gb, stage.disk_gb, stage.largest_batch)
        each = _time(stage.each_seconds) + (" a video" if name == "preprocess" else " a step")
        rows.append([name, each, *map(_number, numbers)])
    _table(rows)


def cheaper(found: list[dict[str, Any]]) -> None:
    """What other settings would save."""
    rows = [["cheaper", "device-hours", "peak GB", "disk GB", ""]]
    for one in found:
        changes = (one.get(name) for name in ("device_hours", "peak_gb", "disk_gb"))
        rows.append([one["flags"], *(" -> ".join(map(_number, c)) if c else "" for c in changes), one["note"]])
    if found:
        _table(rows)


def probed(found: dict[str, Any]) -> None:
    """Prediction and measurement side by side."""
    rows = [["probe", "predicted", "measured", "ratio", "so in all"]]
    for one in found["rows"]:
        row = [one["what"], _figure(one["predicted"], one["unit"])]
        if one["measured"] is None:
            rows.append([*row, "-", "", one["why"]])
            continue
        whole = f"{_number(one['device_hours'])} device-hours" if "device_hours" in one else ""
        ratio = f"{one['measured'] / one['predicted']:.2f}"
        rows.append([*row, _figure(one["measured"], one["unit"]), ratio, whole])
    _table(rows)
    console.print(f"probe    took {found['seconds']:.0f} s")


def _table(rows: list[list[str]]) -> None:
    from rich.table import Table

    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows[1:]:
        table.add_row(*row)
    console.print()
    print_table(table)
    console.print()


def _figure(value: float, unit: str) -> str:
    return _time(value) if unit == "s" else f"{_number(value)} {unit}"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
