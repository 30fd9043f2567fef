"""Where a student and its results are: the folders of runs, students and checkpoints. No torch."""

from __future__ import annotations

from pathlib import Path

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
        raise GuidedCDError(f"{folder} has no student yet. `guidedcd train --out {folder}` finishes it.")
    if folder is None:
        raise GuidedCDError(
            f"{path} contains a student, but neither it nor its parent folders contain the run.json that names its "
            "teacher. Copy that file beside student.json."
        )
    return folder, weights


def results_of(folder: Path, weights: Path) -> Path:
    """The folder of a student's evaluation: the run's folder, for a checkpoint a folder in it."""
    finished = {(folder / "student").resolve(), folder.resolve()}
    return folder if weights.resolve() in finished else folder / "evaluations" / weights.name
