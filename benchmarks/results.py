"""The table of docs/reference/measured-speed.md, from the files that the other scripts write with --out.

    python benchmarks/results.py unet.json training.json     # add the rows of these files, and write the page
    python benchmarks/results.py                             # write the page again
    python benchmarks/results.py --check                     # fail if the page is out of date

benchmarks/results.json has the schema of `harness.py`. It contains every row that was measured, with its machine, date
and command; a newer row replaces the older one of the same name on the same device. Of the rows that count for a figure
the page shows the one that reaches most of its targets, then the best. Rows of a CPU or of --tiny are refused.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results.json", ROOT / "docs" / "reference" / "measured-speed.md"
sys.path += [str(ROOT), str(Path(__file__).parent)]

from figures import EIGHT_BIT, FIGURES, Figure, Target  # noqa: E402

from guidedcd.files import write_json  # noqa: E402

BEGIN, END = "<!-- results: python benchmarks/results.py -->", "<!-- end of results -->"
SCHEMA = 1
UNITS = {
    "seconds": "s",
    "peak_gb": "GB",
    "samples_per_hour": "per hour",
    "ms_per_sample": "ms",
    "times_one_gpu": "x",
}


@attrs.frozen
class Row:
    """One measured row, and the run that it is of."""

    name: str
    """Of the form "benchmark: row"."""
    values: dict[str, float]
    record: dict[str, Any]
    """The row in the file."""
    run: dict[str, Any]
    """Benchmark, command, date, machine."""

    @property
    def source(self) -> str:
        """Machine, date and command."""
        machine = self.run["machine"]
        return f"{machine['device']}, torch {machine['torch']}, {self.run['date']}: `{self.run['command']}`"


def read(path: Path) -> list[Row]:
    """The rows of a file that have values.

    Raises:
        SystemExit: The file cannot be read or has another schema, or its rows were not measured at full size on a GPU.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"{path}: {error}")
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        sys.exit(f"{path} does not have schema {SCHEMA} of benchmarks/harness.py")
    for run in data["runs"]:
        if run["tiny"] or run["machine"]["device"] == "cpu":
            sys.exit(f"{path} contains rows of tiny networks or of a CPU; only full size on a GPU is recorded")
    return [row for run in data["runs"] for row in _rows(run)]


def _rows(run: dict[str, Any]) -> Iterator[Row]:
    about = {key: value for key, value in run.items() if key != "rows"}
    for record in run["rows"]:
        if record.get("values"):
            yield Row(f"{run['benchmark']}: {record['name']}", record["values"], record, about)


def merged(old: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """Rows by name and device, the newer ones in place of the older."""
    rows = {(row.name, row.run["machine"]["device"]): row for row in (*old, *new)}
    return sorted(rows.values(), key=lambda row: (row.name, row.run["machine"]["device"]))


def written(rows: Iterable[Row]) -> dict[str, Any]:
    """Rows in the schema of a file, grouped by run."""
    runs: list[dict[str, Any]] = []
    for row in rows:
        run = next((run for run in runs if {**run, "rows": None} == {**row.run, "rows": None}), None)
        if run is None:
            runs.append(run := {**row.run, "rows": []})
        run["rows"].append(row.record)
    return {"schema": SCHEMA, "runs": runs}


def best(figure: Figure, rows: Iterable[Row]) -> Row | None:
    """The row to show: most targets reached, then the best first target (or the fewest seconds)."""
    counted = [row for row in rows if any(fnmatch.fnmatch(row.name, pattern) for pattern in figure.patterns)]
    if EIGHT_BIT not in figure.patterns:
        counted = [row for row in counted if not fnmatch.fnmatch(row.name, EIGHT_BIT)]
    first = figure.targets[0] if figure.targets else Target("seconds", 0)
    counted = [row for row in counted if first.name in row.values]
    sign = -1 if first.at_least else 1
    return min(
        counted,
        key=lambda row: (-sum(t.is_reached(row.values) for t in figure.targets), sign * row.values[first.name]),
        default=None,
    )


def table(rows: list[Row]) -> str:
    """The table in Markdown, and the sources of its numbers."""
    lines = ["| figure | official | ours | target | setting | measured |", "|---|---|---|---|---|---|"]
    sources: list[str] = []
    for figure in FIGURES:
        official = ", ".join(_value(name, value) for name, value in figure.official.items()) or "-"
        official += f" ({figure.note})" * bool(figure.note)
        targets = ", ".join(f"{'>=' if t.at_least else '<='} {_value(t.name, t.value)}" for t in figure.targets) or "-"
        row = best(figure, rows)
        if row is None:
            lines.append(f"| {figure.title} | {official} | not measured | {targets} | - | - |")
            continue
        if row.source not in sources:
            sources.append(row.source)
        names = dict.fromkeys([*(target.name for target in figure.targets), "seconds", "peak_gb"])
        ours = ", ".join(_value(name, row.values[name]) for name in names if name in row.values)
        if figure.targets and all(target.is_reached(row.values) for target in figure.targets):
            ours = f"**{ours}**"
        setting, number = row.name.partition(": ")[2], sources.index(row.source) + 1
        lines.append(f"| {figure.title} | {official} | {ours} | {targets} | {setting} | [{number}] |")
    lines.append("")
    if sources:
        lines += ["Bold figures reach their target. Sources:", ""]
        lines += [f"{number}. {source}" for number, source in enumerate(sources, 1)]
    else:
        lines.append("Nothing has been measured yet.")
    return "\n".join(lines)


def _value(name: str, value: float) -> str:
    shown = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{shown} {UNITS[name]}"


def page(text: str, rows: list[Row]) -> str:
    """The page with a new table."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{PAGE} lacks the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{after}"


def main(arguments: list[str] | None = None) -> None:
    """Add files, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="files that scripts wrote with --out")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page would change")
    options = parser.parse_args(arguments)
    old = read(RESULTS) if RESULTS.exists() else []
    rows = merged(old, [row for file in options.files for row in read(file)])
    text = PAGE.read_text(encoding="utf-8")
    new = page(text, rows)
    if options.check:
        sys.exit(0 if new == text else f"{PAGE} is out of date: python benchmarks/results.py")
    write_json(RESULTS, written(rows))
    PAGE.write_text(new, encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
