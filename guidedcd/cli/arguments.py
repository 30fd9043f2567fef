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
        latest = sorted(Path("runs").glob("*/run.json"), key=lambda file: file.stat().st_mtime)
        hint = (
            f"Latest runs: {', '.join(str(f.parent) for f in latest[-3:])}."
            if latest
            else "`guidedcd train` makes one."
        )
        raise GuidedCDError(f"there is no run folder {folder}. {hint}")
    return folder


def trained(folder: Path) -> Path:
    """`folder`, if it is a run's or holds a student.

    Raises:
        GuidedCDError: There is none, or it is something else.
    """
    if folder.is_file():
        raise GuidedCDError(
            f"{folder} is a file and no run folder. A published student is given with its base model: "
            f"--student {folder} --teacher videocrafter2:model.ckpt."
        )
    return folder if (folder / "student.json").is_file() else existing(folder)
