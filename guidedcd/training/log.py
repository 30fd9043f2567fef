"""The log of a run: one JSON object per line, readable while a run writes it."""

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

SHARE = "share/"
"""Beginning of the names of energies' shares of the prediction; a step without guided samples has none."""
BY_NOISE = "cd_loss/noise-"
"""Beginning of the names of the consistency loss by noise level, from 1 (the cleanest quarter of the solver's grid) to
4; a step without samples there has none."""
REWARD_SHARE = "reward_share/"
"""Beginning of the names of rewards' shares of the gradient on the frames; see `guidedcd.rewards.meter`."""
SHARE_BY_NOISE = "share_noise-"
"""Beginning of the names of energies' shares by noise level, such as share_noise-1/NAME; levels as of `BY_NOISE`."""
SOMETIMES = (SHARE, BY_NOISE, REWARD_SHARE, SHARE_BY_NOISE)
"""Beginnings of the names of numbers that a batch may lack, as NaN; means are over the batches that have them."""


def read_log(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a log in order, each with its finite numbers by name; a torn last line is left out."""
    return list(_lines(path)) if path.is_file() else []


class Log:
    """Appends lines to `log.jsonl`; a resumed run deletes the lines that it will write again.

    Args:
        path: The file.
        resumed_at: The last finished step, 0 for a new run.
    """

    def __init__(self, path: Path, *, resumed_at: int) -> None:
        self.path = path
        self.seconds = 0.0
        """Training time of the earlier runs in this folder."""
        if path.exists():
            lines = [line for line in _lines(path) if line["step"] <= resumed_at]
            self.seconds = max((line["seconds"] for line in lines if "seconds" in line), default=0.0)
            with replacing(path) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def write(self, line: dict[str, Any]) -> None:
        """Append the finite numbers of one line, and flush the file."""
        finite = {key: value for key, value in line.items() if math.isfinite(value)}
        append_text(self.path, json.dumps(finite) + "\n")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log that are JSON and have a step, each with its finite numbers."""
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(GuidedCDError):
            line = parse_json(text, path)
            check_form(line, {"step": int}, path)
            if 0 <= line["step"] < 2**53:
                yield {key: value for key, value in line.items() if is_number(value)}
