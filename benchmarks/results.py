"""Measured figures into docs/reference/measured-speed.md: the table of what the other scripts wrote with --out.

    python benchmarks/results.py unet.json train.json preprocess.json sampling.json    # take these in, write the page
    python benchmarks/results.py                                                       # write the page again
    python benchmarks/results.py --check                                               # fail if the page is out of date

Every measurement is kept in benchmarks/results.json, with machine, date and command; a script's newer file replaces
what its settings had before on the same machine. Of several settings the page shows the one that reaches most of a
figure's limits, then the best. GB are 2^30 bytes. Files of `--tiny` runs on a CPU are refused.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs

ROOT = Path(__file__).parents[1]
KEPT, PAGE = ROOT / "benchmarks" / "results.json", ROOT / "docs" / "reference" / "measured-speed.md"
BEGIN, END = "<!-- results: python benchmarks/results.py -->", "<!-- end of results -->"


@attrs.frozen
class Limit:
    """One number to reach."""

    name: str
    """Of the value: seconds, gb, per_hour, ms, times."""
    value: float
    at_least: bool = False

    def reached(self, values: dict[str, float]) -> bool:
        """Whether a measurement reaches it."""
        if self.name not in values:
            return False
        return values[self.name] >= self.value if self.at_least else values[self.name] <= self.value


@attrs.frozen
class Figure:
    """One line of the table: which measurements count, what the official code has, and what is to be reached."""

    title: str
    settings: tuple[str, ...]
    """Patterns of measurements "kind: setting" that count."""
    official: str
    limits: tuple[Limit, ...]


FIGURES = (
    Figure("UNet forward, per sample, best batch", ("unet: *",), "57 ms (batch 4)", (Limit("ms", 32),)),
    Figure(
        "motion-guided samples per GPU-hour, full inversion, one draw per video",
        ("preprocess: one draw per video*",),
        "300",
        (Limit("per_hour", 700, True),),
    ),
    Figure(
        "the same, eight draws per video",
        ("preprocess: eight draws per video*",),
        "300",
        (Limit("per_hour", 3500, True),),
    ),
    Figure(
        "the same, single-step reference",
        ("preprocess: single-step reference*",),
        "-",
        (Limit("per_hour", 15000, True),),
    ),
    Figure(
        "PTA score and conditional prediction, per sample, batch 4",
        ("preprocess: score and prediction*",),
        "0.243 s, 19.1 GB (batch 1)",
        (Limit("seconds", 0.12), Limit("gb", 30)),
    ),
    Figure(
        "CD step, batch 3, full fine-tuning",
        ("train: cd*", "train: parallel-one*"),
        "1.02 s, 29.4 GB",
        (Limit("seconds", 0.50),),
    ),
    Figure("the same, float32 states, least memory", ("train: cd*",), "1.02 s, 29.4 GB", (Limit("gb", 32),)),
    Figure("the same, 8-bit states", ("train: cd-8bit*",), "-", (Limit("gb", 24),)),
    Figure(
        "CD + HPS + CLIP + InternVideo2 in one step",
        ("train: all*",),
        "1.34 s, 50.3 GB",
        (Limit("seconds", 0.70), Limit("gb", 40)),
    ),
    Figure("LoRA training step", ("train: lora*",), "-", (Limit("gb", 24),)),
    Figure(
        "sampling 4 steps with decode", ("sampling: 4 steps*", "train: sample*"), "0.53 s", (Limit("seconds", 0.25),)
    ),
    Figure("8 steps", ("sampling: 8 steps*",), "0.83 s", ()),
    Figure("16 steps", ("sampling: 16 steps*",), "1.44 s", ()),
    Figure("2 GPUs, DDP, samples per second of one", ("train: parallel-ddp*",), "-", (Limit("times", 1.85, True),)),
    Figure("2 GPUs, FSDP2, likewise", ("train: parallel-fsdp*",), "-", (Limit("times", 1.85, True),)),
)
"""Official figures: the released code with PyTorch's attention on one H200; see the page."""
UNITS = {"seconds": "s", "gb": "GB", "per_hour": "per hour", "ms": "ms", "times": "x"}
EIGHT_BIT = "train: cd-8bit*"
SCRIPTS = {"preprocess": "preprocessing", "train": "training"}
"""Scripts by the kind of their settings, where the two differ."""


def read(path: Path, command: str | None, date: str | None) -> Iterator[dict[str, Any]]:
    """The measurements in a script's file: setting, values, machine, date, command.

    Raises:
        SystemExit: It is none of a benchmark's files, or was not measured on a GPU.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"{path}: {error}")
    script, found = _measurements(data)
    about = data.get("machine", data)
    machine = about.get("gpu") or about.get("device") or ""
    if not found or machine in ("", "cpu"):
        sys.exit(f"{path} holds no figure that was measured on a GPU")
    when = date or data.get("date") or datetime.date.fromtimestamp(path.stat().st_mtime).isoformat()
    how = command or data.get("command") or f"python benchmarks/{SCRIPTS.get(script, script)}.py"
    for setting, values in found:
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
        if numbers:
            yield {
                "setting": f"{script}: {setting}",
                "values": numbers,
                "machine": f"{machine}, torch {about.get('torch', '?')}",
                "date": when,
                "command": how,
            }


def _measurements(data: dict[str, Any]) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    """Which script wrote a file, and its (setting, values)."""
    if "figures" in data:
        keys = {"seconds": "seconds", "gb": "gb", "times_one": "times"}
        return "train", [(row["figure"], _renamed(row, keys)) for row in data["figures"] if "seconds" in row]
    rows = data.get("rows", [])
    if any("ms_per_sample" in row for row in rows):
        chosen = [row for row in rows if row.get("kind") == "forward" and "ms_per_sample" in row]
        return "unet", [(f"{r['name']}, batch {r['batch']}", {"ms": r["ms_per_sample"]}) for r in chosen]
    if any("seconds_per_video" in row for row in rows):
        chosen = [row for row in rows if row.get("steps") and "seconds_per_video" in row]
        named = [(f"{r['steps']} steps, {r['name']}, batch {r['batch']}", r) for r in chosen]
        return "sampling", [(name, _sized(_renamed(r, {"seconds_per_video": "seconds"}), r)) for name, r in named]
    return "preprocess", list(_preprocessing(rows))


def _preprocessing(rows: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    units = {"samples per hour": "per_hour", "s per sample": "seconds"}
    memory = {row["fast"]: row["ours"] for row in rows if str(row.get("unit", "")).startswith("GB")}
    for row in rows:
        if row.get("unit") in units and "ours" in row:
            values = {units[row["unit"]]: row["ours"]}
            if row["unit"] == "s per sample" and row["fast"] in memory:
                values["gb"] = memory[row["fast"]]
            yield f"{row['figure']}, {row['fast']}", values


def _renamed(row: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {new: row[old] for old, new in names.items() if old in row}


def _sized(values: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    return values | ({"gb": row["peak_gb"]} if isinstance(row.get("peak_gb"), float) else {})


def merged(old: Iterable[dict[str, Any]], new: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Measurements by setting and machine, the newer ones over the older."""
    found = {(one["setting"], one["machine"].split(",")[0]): one for one in (*old, *new)}
    return sorted(found.values(), key=lambda one: (one["setting"], one["machine"]))


def best(figure: Figure, measured: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The measurement to show: most limits reached, then the best first limit (or the fewest seconds)."""
    counted = [m for m in measured if any(fnmatch.fnmatch(m["setting"], p) for p in figure.settings)]
    if EIGHT_BIT not in figure.settings:
        counted = [m for m in counted if not fnmatch.fnmatch(m["setting"], EIGHT_BIT)]
    first = figure.limits[0] if figure.limits else Limit("seconds", 0)
    counted = [m for m in counted if first.name in m["values"]]
    sign = -1 if first.at_least else 1
    return min(
        counted,
        key=lambda m: (-sum(limit.reached(m["values"]) for limit in figure.limits), sign * m["values"][first.name]),
        default=None,
    )


def table(measured: list[dict[str, Any]]) -> str:
    """The table in Markdown, and where its numbers come from."""
    lines = ["| figure | official | ours | to reach | setting | measured |", "|---|---|---|---|---|---|"]
    sources: list[tuple[str, str, str]] = []
    for figure in FIGURES:
        found = best(figure, measured)
        wanted = ", ".join(_limit(limit) for limit in figure.limits) or "-"
        if found is None:
            lines.append(f"| {figure.title} | {figure.official} | not measured | {wanted} | - | - |")
            continue
        source = (found["machine"], found["date"], found["command"])
        if source not in sources:
            sources.append(source)
        names = dict.fromkeys([*(limit.name for limit in figure.limits), "seconds", "gb"])
        ours = ", ".join(_value(name, found["values"][name]) for name in names if name in found["values"])
        reached = all(limit.reached(found["values"]) for limit in figure.limits)
        ours = f"**{ours}**" if reached and figure.limits else ours
        setting = found["setting"].partition(": ")[2]
        number = sources.index(source) + 1
        lines.append(f"| {figure.title} | {figure.official} | {ours} | {wanted} | {setting} | [{number}] |")
    lines.append("")
    if sources:
        lines.append("Bold: reached. Measured on:")
        lines.append("")
        lines += [f"{n}. {machine}, {date}: `{command}`" for n, (machine, date, command) in enumerate(sources, 1)]
    else:
        lines.append("Nothing has been measured yet.")
    return "\n".join(lines)


def _limit(limit: Limit) -> str:
    return f"{'>=' if limit.at_least else '<='} {_value(limit.name, limit.value)}"


def _value(name: str, value: float) -> str:
    shown = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{shown} {UNITS[name]}"


def page(text: str, measured: list[dict[str, Any]]) -> str:
    """The page with its table made anew."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{PAGE} lacks the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table(measured)}\n\n{END}{after}"


def main(arguments: list[str] | None = None) -> None:
    """Take files in, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="what scripts wrote with --out")
    parser.add_argument("--command", help="how the files were made, if not by the script's plain command")
    parser.add_argument("--date", help="when, if not when the files were written")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page would change")
    options = parser.parse_args(arguments)
    old = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else []
    measured = merged(old, [one for file in options.files for one in read(file, options.command, options.date)])
    text = PAGE.read_text(encoding="utf-8")
    new = page(text, measured)
    if options.check:
        sys.exit(0 if new == text else f"{PAGE} is out of date: python benchmarks/results.py")
    KEPT.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(new, encoding="utf-8")
    print(table(measured))


if __name__ == "__main__":
    main()
