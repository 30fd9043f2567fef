"""Line charts as inline SVG, drawn without any library; colours come from the page's style sheet. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Point = tuple[float, float]

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 34


def line_chart(title: str, series: Mapping[str, Sequence[Point]], *, x_label: str = "step") -> str:
    """A figure with one line per series and its figures in words, so that it can be read without seeing it.

    Args:
        title: What is drawn; the figure's heading.
        series: Points (x, y) by name, in order of x; points that are not finite are left out.
        x_label: What x is.
    """
    kept = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for name, points in series.items()
    }
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return ""
    every = [point for points in kept.values() for point in points]
    xs, ys = [x for x, _ in every], [y for _, y in every]
    x_ticks, y_ticks = ticks(min(xs), max(xs), 5, whole=True), ticks(min(ys), max(ys), 4)
    x0, x1 = min(xs), max(max(xs), min(xs) + 1e-9)
    y0, y1 = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        return round(across, 1), round(HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM), 1)

    parts = []
    for y in y_ticks:
        level = at(x0, y)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{level}" y2="{level}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{level + 4}" text-anchor="end">{short(y)}</text>')
    for x in x_ticks:
        if x0 <= x <= x1:
            where = at(x, y0)[0]
            parts.append(
                f'<text class="tick" x="{where}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{short(x)}</text>'
            )
    center = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="tick" x="{center}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>')
    for number, points in enumerate(kept.values()):
        path = " ".join(f"{x},{y}" for x, y in (at(*point) for point in points))
        if len(points) == 1:
            x, y = at(*points[0])
            parts.append(f'<circle class="dot s{number % 6}" cx="{x}" cy="{y}" r="3"/>')
        else:
            parts.append(f'<polyline class="line s{number % 6}" points="{path}"/>')
    said = "; ".join(in_words(name if len(kept) > 1 else "", points, x_label) for name, points in kept.items())
    legend = ""
    if len(kept) > 1:
        items = "".join(
            f'<li><span class="key s{number % 6}"></span>{escape(name)}</li>' for number, name in enumerate(kept)
        )
        legend = f'<ul class="legend">{items}</ul>'
    return (
        f'<figure class="chart"><h3>{escape(title)}</h3>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}: {escape(said)}">'
        f"{''.join(parts)}</svg>{legend}<figcaption>{escape(said)}</figcaption></figure>"
    )


def in_words(name: str, points: Sequence[Point], x_label: str) -> str:
    """E.g. "hps: 0.21 at step 1, 0.28 at step 100"."""
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


def short(value: float) -> str:
    """A number in at most three figures: 0.00123, 12.3, 4,000."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.1e}"
