"""The log of a run, one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guidedcd.documents import check_form, is_number, parse_json
from guidedcd.errors import GuidedCDError
from guidedcd.files import append_text, replacing


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log, finite numbers by name, in order; one that a killed process left torn is dropped."""
    return list(_lines(path)) if path.is_file() else []


class Log:
    """`log.jsonl`: one JSON object a line; a resumed run drops the lines that it will write again."""

    def __init__(self, path: Path, *, resumed_at: int) -> None:
        self.path = path
        self.seconds = 0.0
        """What the runs before this one took."""
        if path.exists():
            kept = [line for line in _lines(path) if line["step"] <= resumed_at]
            self.seconds = max((line["seconds"] for line in kept if "seconds" in line), default=0.0)
            with replacing(path) as part:
                part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def write(self, line: dict[str, Any]) -> None:
        """Append one line, at once on disk."""
        finite = {key: value for key, value in line.items() if math.isfinite(value)}
        append_text(self.path, json.dumps(finite) + "\n")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a log that have a step, with what is a finite number in them."""
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(GuidedCDError):
            line = parse_json(text, path)
            check_form(line, {"step": int}, path)
            if 0 <= line["step"] < 2**53:
                yield {key: value for key, value in line.items() if is_number(value)}
