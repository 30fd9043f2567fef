"""A run's curves beside those of its profile's reference run: inside or outside the band around them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import attrs
import numpy as np

from guidedcd.config.sources import reference_of
from guidedcd.console import counted
from guidedcd.documents import parse_json
from guidedcd.evaluation.report.charts import Chart, Point, line_chart
from guidedcd.evaluation.report.curves import Log, drawn, points
from guidedcd.evaluation.report.options import Difference, differing, options_table
from guidedcd.evaluation.report.run_files import RunFiles
from guidedcd.evaluation.report.score_tables import Cell, Row, Table
from guidedcd.training.log import read_log

COMPARED = ("loss", "cd_loss", "grad_norm", "reward/", "share/")
"""Beginnings of the keys that are compared."""
OF_REWARDS = ("loss", "grad_norm")
"""Those that depend on which rewards a run has."""
WINDOW = 9
"""Logged steps of a running median."""
WIDTH = 2.0
"""Half the width of a band, in robust standard deviations of single values around the running median."""
INSIDE = 0.9
"""Smallest share of steps inside the band of a curve that counts as inside."""
FEWEST = 5
"""Curves with fewer common steps are not compared."""

Band = list[tuple[float, float, float]]
"""Points (step, low, high)."""


@attrs.frozen
class Position:
    """Where a curve lies beside the reference."""

    key: str
    share: float
    """Share of the steps inside the band."""
    outside: str
    """ "above" or "below" the band where most of the other steps lie; "" where none does."""
    since: float | None
    """The first step from which the rest of the curve is outside; None where it ends inside."""
    steps: int
    """Logged steps in common."""
    last: float
    """The last of them."""

    @property
    def is_inside(self) -> bool:
        """Whether the curve counts as inside."""
        return self.share >= INSIDE and self.since is None


@attrs.frozen
class Health:
    """What the report shows beside a reference run."""

    sentence: str
    table: Table
    options: Table | None
    """Options that differ from the reference run."""
    charts: list[Chart]


def health(files: RunFiles) -> Health | None:
    """The run beside its profile's reference run; None without one, with another teacher or with too few common steps.

    The sum of the losses and the gradient of a run with other rewards are other quantities, and are not compared.
    """
    source = reference_of(str(files.run.get("profile", "")))
    if source is None:
        return None
    with resources.as_file(source) as path:
        log = read_log(path)
        about = parse_json(path.read_text(encoding="utf-8").partition("\n")[0], path)
    expected = about.get("run", {})
    if list(files.run.get("teacher", {})) != list(expected.get("teacher", {})):
        return None
    alike = set(files.run.get("rewards", {})) == set(expected.get("rewards", {}))
    keys = [key for key in dict.fromkeys(k for line in log for k in line) if key.startswith(COMPARED)]
    keys = [key for key in keys if alike or key not in OF_REWARDS]
    positions, charts = [], []
    for key in keys:
        own, surrounding = smoothed(points(files.log, key)), band(points(log, key))
        position = compared(key, own, surrounding)
        if position is not None:
            positions.append(position)
            charts.append(line_chart(key, {"this run": own}, band=surrounding))
    if not positions:
        return None
    return Health(
        _sentence(positions, str(files.run["profile"]), log[-1]["step"]),
        _table(positions),
        options_table("Options", ("reference", "this run"), _compared_options(expected, files.run)),
        drawn(charts),
    )


def band(curve: Sequence[Point]) -> Band:
    """The reference's running median, with `WIDTH` robust standard deviations of its values on both sides."""
    medians = smoothed(curve)
    apart = [abs(y - middle) for (_, y), (_, middle) in zip(curve, medians, strict=True)]
    half = WIDTH * 1.4826 * statistics.median(apart) if apart else 0.0
    half = max(half, 0.02 * max((abs(y) for _, y in medians), default=0.0))  # a constant curve has no spread
    return [(x, y - half, y + half) for x, y in medians]


def smoothed(curve: Sequence[Point]) -> list[Point]:
    """The running median over `WINDOW` points, fewer at both ends."""
    half, ys = WINDOW // 2, [y for _, y in curve]
    return [(x, statistics.median(ys[max(0, i - half) : i + half + 1])) for i, (x, _) in enumerate(curve)]


def compared(key: str, own: Sequence[Point], surrounding: Band) -> Position | None:
    """Where smoothed points lie beside a band, at the steps that both have; None for too few."""
    if len(surrounding) < FEWEST:
        return None
    steps, lows, highs = np.array(surrounding).T
    common = [(x, y) for x, y in own if steps[0] <= x <= steps[-1]]
    if len(common) < FEWEST:
        return None
    xs, ys = np.array(common).T
    above, below = ys > np.interp(xs, steps, highs), ys < np.interp(xs, steps, lows)
    out = above | below
    last_inside = np.flatnonzero(~out)
    first_out = int(last_inside[-1]) + 1 if len(last_inside) else 0
    since = float(xs[first_out]) if first_out < len(xs) else None
    side = "" if not out.any() else "above" if above.sum() >= below.sum() else "below"
    return Position(key, float(1 - out.mean()), side, since, len(common), float(xs[-1]))


def _sentence(positions: Sequence[Position], profile: str, end: float) -> str:
    """Whether the run looks like the reference run, in a plain sentence."""
    leaving = [one for one in positions if not one.is_inside]
    steps = counted(max(one.steps for one in positions), "logged step")
    last = max(one.last for one in positions)
    is_whole = last >= INSIDE * end
    if not is_whole:
        steps += f" in the first {last:,.0f} of its {end:,.0f} steps"
    if not leaving:
        return (
            f"{'Yes' if is_whole else 'So far yes'}: all {len(positions)} curves of this run lie inside the bands of "
            f"the reference run of profile {profile}, compared at {steps}."
        )
    named = ", ".join(f"{one.key} ({one.outside})" for one in leaving)
    verb = "leaves its band" if len(leaving) == 1 else "leave their bands"
    return (
        f"Not like the reference run of profile {profile}: {len(leaving)} of {len(positions)} curves {verb}, compared "
        f"at {steps}: {named}."
    )


def _table(positions: Sequence[Position]) -> Table:
    rows = []
    for one in positions:
        where = "inside" if one.is_inside else f"outside, {one.outside}"
        note = None if one.since is None else f"from step {one.since:,.0f} to the end"
        cells = [Cell(where, note, "" if one.is_inside else "bad"), Cell(f"{100 * one.share:.0f} %")]
        rows.append(Row(Cell(one.key), cells))
    return Table("Curves beside the reference run", [Cell("curve"), Cell("band"), Cell("steps inside")], rows)


def _compared_options(expected: Mapping[str, Any], run: Mapping[str, Any]) -> list[Difference]:
    """The options of components and sections that differ; the seed and the place of a run are its own."""
    own = ("seed", "device", "guidedcd, of the training")
    return [(path, values) for path, values in differing([expected, run]) if path not in own]


def reference(files: RunFiles, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of a reference file from a finished run: first `about` with the run's options, then its curves."""
    options = {key: value for key, value in files.run.items() if key not in ("command", "name")}
    lines: Log = [{k: v for k, v in line.items() if k == "step" or k.startswith(COMPARED)} for line in files.log]
    return [{**about, "run": options}, *({k: _rounded(v) for k, v in line.items()} for line in lines)]


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")
