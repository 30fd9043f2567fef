"""Run folders, and what evaluate and sample share, as arguments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from guidedcd.errors import GuidedCDError
from guidedcd.structure import convert, flag


def existing(folder: Path) -> Path:
    """`folder`, if it exists.

    Raises:
        GuidedCDError: There is none; names the latest runs.
    """
    if not folder.is_dir():
        made = sorted(Path("runs").glob("*/run.json"), key=lambda file: file.stat().st_mtime)
        hint = f"Latest runs: {', '.join(str(f.parent) for f in made[-3:])}." if made else "`guidedcd train` makes one."
        raise GuidedCDError(f"there is no run folder {folder}. {hint}")
    return folder


def scales(texts: Sequence[str]) -> float | dict[str, float] | None:
    """--scale 0.3 (the only energy's), or --scale pta=0.3,jerk=0.1; nothing when it was not given.

    Raises:
        GuidedCDError: It is neither.
    """
    parts = [part.strip() for text in texts for part in text.split(",") if part.strip()]
    if not parts:
        return None
    named = {name: value for name, equals, value in (part.partition("=") for part in parts) if equals}
    if not named and len(parts) == 1:
        return convert(parts[0], float, "--scale")
    if len(named) < len(parts):
        raise GuidedCDError(f"--scale must be a number, or NAME=NUMBER for each energy (got '{','.join(parts)}').")
    return {name: convert(value, float, f"--scale {name}") for name, value in named.items()}


def numbers(texts: Sequence[str], hint: type, where: str) -> tuple | None:
    """A flag's comma-separated numbers; nothing when it was not given."""
    return convert(",".join(texts), tuple[hint, ...], where) if texts else None


def counted(**values: int | None) -> None:
    """Check that the numbers of things that were given are at least 1.

    Raises:
        GuidedCDError: One is not.
    """
    for name, value in values.items():
        if value is not None and value < 1:
            raise GuidedCDError(f"--{flag(name)} must be at least 1 (got {value}).")
