"""The log of a run, one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guidedcd.files import explained, replacing


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log that have a step, in order; one that a killed process left half-written is dropped."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("step"), int | float):
            found.append({k: v for k, v in value.items() if not (isinstance(v, float) and not math.isfinite(v))})
    return found


class Log:
    """`log.jsonl`: one JSON object a line; a resumed run drops the lines that it will write again."""

    def __init__(self, path: Path, *, resumed_at: int) -> None:
        self.path = path
        self.seconds = 0.0
        """What the runs before this one took."""
        if path.exists():
            kept = [line for line in _lines(path) if line["step"] <= resumed_at]
            self.seconds = max((line.get("seconds", 0.0) for line in kept), default=0.0)
            with replacing(path) as part:
                part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def write(self, line: dict[str, Any]) -> None:
        """Append one line, at once on disk."""
        finite = {key: value for key, value in line.items() if math.isfinite(value)}
        try:
            with open(self.path, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(finite) + "\n")
        except OSError as error:
            raise explained(error, self.path) from error


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a log; one that a killed process left half-written is dropped."""
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                yield line
