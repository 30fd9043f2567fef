"""Run folders as arguments."""

from __future__ import annotations

from pathlib import Path

from guidedcd.errors import GuidedCDError


def existing(folder: Path, holds: str = "run.json") -> Path:
    """`folder`, if it is a run's.

    Raises:
        GuidedCDError: There is none, or it is something else.
    """
    if not folder.is_dir():
        near = sorted(str(f.parent) for f in Path("runs").glob(f"*/{holds}"))
        hint = f" Runs here: {', '.join(near[-3:])}." if near else " `guidedcd train` makes one."
        raise GuidedCDError(f"there is no run folder {folder}.{hint}")
    if not (folder / holds).exists():
        raise GuidedCDError(f"{folder} is no run folder: it has no {holds}.")
    return folder
