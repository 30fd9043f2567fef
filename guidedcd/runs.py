"""Run folders: which one a command continues or starts, and its log. No torch."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guidedcd.console import console
from guidedcd.errors import GuidedCDError
from guidedcd.files import digest, explained, read_json, replacing
from guidedcd.run import Run

RUNS = Path("runs")
DONE = "report.html"
"""The last file that a training run writes: a folder that has it is finished."""


def run_folder(run: Run, out: Path | None, *, new: bool) -> Path:
    """The folder of `run`: the one given, the newest unfinished one of the same configuration, or a new one.

    Nothing is written yet: a command that fails early leaves no folder behind.

    Raises:
        GuidedCDError: `out` holds a run of another configuration, or something else, or cannot be written.
    """
    described = run.to_dict()
    if out is not None:
        if (out / "run.json").exists():
            found = read_json(out / "run.json")
            if not _same(found, described):
                other = _difference(found, described)
                raise GuidedCDError(f"{out} holds a run with another configuration ({other}). Choose another --out.")
            if new:
                raise GuidedCDError(f"--new starts a new run, but {out} holds one already. Choose another --out.")
        elif out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise GuidedCDError(f"{out} is not empty and is no run folder. Choose another --out.")
        return out
    if not new:
        for folder in sorted(RUNS.glob("*/run.json"), key=lambda p: p.stat().st_mtime, reverse=True):
            if not (folder.parent / DONE).exists() and _same(read_json(folder), described):
                console.print(f"run      continuing {folder.parent} (--new starts another)")
                return folder.parent
    date, number = datetime.date.today().isoformat(), 1
    while (folder := RUNS / (f"{date}-{run.name}" + (f"-{number}" if number > 1 else ""))).exists():
        number += 1
    return folder


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs would compute the same; the version that wrote them and the command line do not count."""
    return digest(_essence(one)) == digest(_essence(other))


def _essence(described: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in described.items() if k not in ("guidedcd", "command", "device")}


def _difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    for key in sorted({*one, *other} - {"guidedcd", "command", "device"}):
        if digest(one.get(key)) != digest(other.get(key)):
            if isinstance(one.get(key), dict) and isinstance(other.get(key), dict):
                return f"{key}.{_difference(one[key], other[key])}"
            return f"{key}: {one.get(key)} there, {other.get(key)} here"
    return "same"


class Log:
    """`log.jsonl`: one JSON object a line; a resumed run drops the lines that it will write again."""

    def __init__(self, path: Path, *, resumed_at: int) -> None:
        self.path = path
        if path.exists():
            kept = [line for line in _lines(path) if line["step"] <= resumed_at]
            with replacing(path) as part:
                part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def write(self, line: dict[str, Any]) -> None:
        """Append one line, at once on disk."""
        try:
            with open(self.path, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(line) + "\n")
        except OSError as error:
            raise explained(error, self.path) from error


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a log; one that a killed process left half-written is dropped."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return
