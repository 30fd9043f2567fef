"""Where a student and its results are: the folders of runs, students and checkpoints. No torch."""

from __future__ import annotations

import contextlib
from pathlib import Path

from guidedcd import locks
from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError


def home(path: Path) -> Path | None:
    """The run's folder of a run, student or checkpoint folder; None where none has a run.json."""
    return next((f for f in (path, *path.parents[:2]) if (f / "run.json").is_file()), None)


def locate(path: Path) -> tuple[Path, Path]:
    """The folders of the run and of the student's weights, for a run, student or checkpoint folder.

    Raises:
        GuidedCDError: There is no student, or the run that it belongs to cannot be found.
    """
    if not path.exists():
        raise GuidedCDError(f"there is no run folder {path}.")
    folder = home(path)
    weights = path if (path / "student.json").is_file() else path / "student"
    if not (weights / "student.json").is_file():
        if folder is None:
            raise GuidedCDError(f"{path} is neither a run's folder (run.json) nor a student's (student.json).")
        if (folder / "store.json").is_file():
            raise GuidedCDError(f"{folder} is a latent store and has no student. Give the folder of a run.")
        raise _without_student(folder)
    if folder is None:
        raise GuidedCDError(
            f"{path} contains a student, but neither it nor its parent folders contain the run.json that names its "
            "teacher. Copy that file beside student.json."
        )
    return folder, weights


def _without_student(folder: Path) -> GuidedCDError:
    """The error for a run that has not finished its training."""
    saved = max((path.name for path in (folder / "checkpoints").glob("step-*")), default=None)
    checkpoint = f", or give its checkpoint {folder / 'checkpoints' / saved}" if saved else ""
    if owner := locks.holder(folder):
        return GuidedCDError(f"{folder} is still training ({owner}) and has no student yet. Wait for it{checkpoint}.")
    command = None
    with contextlib.suppress(GuidedCDError):
        command = read_json(folder / "run.json", {}).get("command")
    how = f"`{command}` continues it" if isinstance(command, str) else "Start the same run again to continue it"
    return GuidedCDError(f"{folder} is unfinished and has no student yet. {how}{checkpoint}.")


def results_of(folder: Path, weights: Path) -> Path:
    """The folder of a student's evaluation: the run's folder, for a checkpoint a folder in it."""
    finished = {(folder / "student").resolve(), folder.resolve()}
    return folder if weights.resolve() in finished else folder / "evaluations" / weights.name
