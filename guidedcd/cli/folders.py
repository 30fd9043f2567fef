"""Run folders as arguments."""

from __future__ import annotations

from pathlib import Path

from guidedcd.errors import GuidedCDError


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
