"""Positions of the lines, ticks and texts of line charts, which the template writes as inline SVG. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import attrs

Point = tuple[float, float]

WIDTH, HEIGHT = 360, 190
LARGEST = 1e100
"""Larger numbers are left out, since their differences and ratios may not be finite."""
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 34


@attrs.frozen
class Label:
    """A text beside an axis."""

    x: float
    y: float
    anchor: str
    text: str


@attrs.frozen
class Curve:
    """A named line; a single point is a dot."""

    name: str
    points: list[Point]
    """In the coordinates of the drawing."""


@attrs.frozen
class Chart:
    """The elements of one chart, and its description in words for screen readers."""

    title: str
    words: str
    levels: list[float]
    """Heights of the grid's lines."""
    labels: list[Label]
    """The texts of both axes."""
    curves: list[Curve]
    band: list[Point] = attrs.field(factory=list)
    """The corners of a band behind the curves; none without one."""
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT


def line_chart(
    title: str,
    series: Mapping[str, Sequence[Point]],
    *,
    x_label: str = "step",
    band: Sequence[tuple[float, float, float]] = (),
) -> Chart | None:
    """A figure with one line per series, or None where there is no finite point.

    Args:
        title: Heading of the chart.
        series: Points (x, y) by name, in order of x; those beyond `LARGEST` or not finite are left out.
        x_label: Title of the x axis.
        band: Points (x, low, high) of a band behind the lines, in order of x.
    """
    curves = {
        name: [(x, y) for x, y in points if abs(x) < LARGEST and abs(y) < LARGEST] for name, points in series.items()
    }
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return None
    every = [point for points in curves.values() for point in points]
    every += [(x, y) for x, *limits in band for y in limits]
    xs, ys = [x for x, _ in every], [y for _, y in every]
    x_ticks, y_ticks = ticks(min(xs), max(xs), 5, whole=True), ticks(min(ys), max(ys), 4)
    x0, x1 = min(xs), max(max(xs), min(xs) + 1e-9)
    y0, y1 = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))

    def at(x: float, y: float) -> Point:
        across = LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        return round(across, 1), round(HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM), 1)

    heights = [at(x0, y)[1] for y in y_ticks]
    below = [Label(at(x, y0)[0], HEIGHT - BOTTOM + 15, "middle", short(x)) for x in x_ticks if x0 <= x <= x1]
    beside = [Label(LEFT - 6, height + 4, "end", text) for text, height in zip(distinct(y_ticks), heights, strict=True)]
    axis = Label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, "middle", x_label)
    return Chart(
        title=title,
        words="; ".join(in_words(name if len(curves) > 1 else "", points, x_label) for name, points in curves.items()),
        levels=heights,
        labels=[*beside, *below, axis],
        band=[at(x, low) for x, low, _ in band] + [at(x, high) for x, _, high in reversed(band)],
        curves=[Curve(name, [at(*point) for point in points]) for name, points in curves.items()],
    )


def in_words(name: str, points: Sequence[Point], x_label: str) -> str:
    """First and last point of a curve, e.g. "hps: 0.21 at step 1, 0.28 at step 100"."""
    start = f"{name}: " if name else ""
    first, last = points[0], points[-1]
    if len(points) == 1:
        return f"{start}{short(first[1])} at {x_label} {short(first[0])}"
    return f"{start}{short(first[1])} at {x_label} {short(first[0])}, {short(last[1])} at {x_label} {short(last[0])}"


def ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """About `count` round numbers that cover [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if raw <= power * m * (1 + 1e-9))
    if whole:
        step = max(1.0, step)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def distinct(values: Sequence[float]) -> list[str]:
    """Different numbers in three figures, or in as many as tell them apart."""
    for texts in ([short(v) for v in values], *([f"{v:.{digits}g}" for v in values] for digits in range(4, 17))):
        if len(set(texts)) == len(texts):
            break
    return texts


def short(value: float) -> str:
    """A number in at most three figures: 0.00123, 12.3, 4,000."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.1e}"
