"""Training checkpoints: folders with weights and optimiser, written atomically; the newest two are kept."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from guidedcd.devices import is_out_of_memory
from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError, NoPermissionError, shortened, unreadable
from guidedcd.files import file_digest, replacing
from guidedcd.models.student import CHECKSUMS, Student, write_checksums
from guidedcd.training.master_weights import MasterWeights

KEPT = 2
"""Number of checkpoints that are kept."""

State = dict[str, Tensor]


def weights_of(weights: MasterWeights) -> tuple[State, State | None]:
    """The trained weights, and their average or None, whole and on the CPU; to be called in every process."""
    return weights.state(), weights.state(averaged=True) if weights.average is not None else None


def write_student(folder: Path, student: Student, online: State, average: State | None) -> None:
    """Write a student that samples with the average where there is one, with the trained weights in another file."""
    if average is None:
        student.save(folder, online)
    else:
        student.save(folder, average, online)


def save(
    folder: Path,
    step: int,
    student: Student,
    weights: MasterWeights,
    optimizer: torch.optim.Optimizer,
    scaler: Any = None,
    *,
    write: bool = True,
) -> Path:
    """Write `step-NNNNNN/` with the student and the states of optimiser and scaler, then delete old checkpoints.

    To be called in every process, because weights may be sharded over all of them.

    Args:
        folder: The folder of all checkpoints.
        step: Number of the step that the checkpoint follows.
        student: For its configuration.
        weights: The trained weights.
        optimizer: Its state is saved for whole weights, whatever the number of processes.
        scaler: The gradient scaler of float16, if there is one.
        write: Whether this process writes the files; one process does.

    Returns:
        The checkpoint's folder.

    Raises:
        GuidedCDError: The disk is full.
    """
    target = folder / f"step-{step:06d}"
    if not target.exists():
        online, average = weights_of(weights)
        optimizer_state = optimizer.state_dict()
        optimizer_state["state"] = _mapped(optimizer_state["state"], weights.masters, weights.whole)
        state = {"step": step, "optimizer": _on_cpu(optimizer_state)}
        state["scaler"] = scaler.state_dict() if scaler is not None else None
        if not write:
            return target
        with replacing(target) as temporary:
            write_student(temporary, student, online, average)
            with open(temporary / "state.pt", "wb") as handle:  # torch hides the error of a full disk of its own files
                torch.save(state, handle)
            write_checksums(temporary, step=step)
    for old in paths(folder)[:-KEPT] if write else ():
        hidden = old.with_name(f".{old.name}.part")  # a half-deleted checkpoint must not count as complete
        old.rename(hidden)
        shutil.rmtree(hidden)
    return target


def paths(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first.

    Raises:
        GuidedCDError: Something else has the folder's name, so that no checkpoint could be written, or the folder may
            not be read.
    """
    if folder.exists() and not folder.is_dir():
        raise GuidedCDError(f"{folder} is not a folder, but the checkpoints of the run belong there. Move it away.")
    try:  # glob() finds nothing where it may not look, and a run would begin again
        listed = list(folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise unreadable(error, folder) from error
    numbered = (path for path in listed if re.fullmatch("step-[0-9]+", path.name))
    return sorted(numbered, key=lambda path: int(path.name[5:]))


def load(
    path: Path,
    weights: MasterWeights,
    optimizer: torch.optim.Optimizer,
    scaler: Any = None,
    *,
    student: Student | None = None,
) -> int:
    """Restore weights, optimiser and scaler in place; returns the number of the checkpoint's step.

    Args:
        path: The checkpoint's folder.
        weights: The weights of the student.
        optimizer: Its optimiser.
        scaler: The gradient scaler of float16, if there is one.
        student: The student, whose energies and format are compared; None compares nothing.

    Raises:
        GuidedCDError: A file is missing, is damaged or belongs to another checkpoint, or may not be read; or the
            checkpoint is one of a student with other energies, or of another version.
    """
    verify(path)
    if student is not None:
        _check_student(path, student)
    try:
        online = path / "online.safetensors"
        average = load_file(path / "model.safetensors") if weights.average is not None else None
        weights.load(load_file(online if average is not None else path / "model.safetensors"), average)
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        if state["step"] != int(path.name[5:]):
            raise ValueError(f"state.pt is of step {state['step']}")
        _check_moments(state["optimizer"]["state"], weights.working)
        state["optimizer"]["state"] = _mapped(state["optimizer"]["state"], weights.working, weights.own)
        optimizer.load_state_dict(state["optimizer"])
        if scaler is not None and state.get("scaler"):
            scaler.load_state_dict(state["scaler"])
        return int(state["step"])
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise damaged(path, error) from error


def _check_student(path: Path, student: Student) -> None:
    """Compare the student of a checkpoint with that of the run.

    Raises:
        GuidedCDError: It has other energies, or the format of another version.
    """
    saved = read_json(path / "student.json", {"energies": [str], "format": int})
    problem = ""
    if list(saved["energies"]) != list(student.energies):
        problem = f"is of a student with {_listed(saved['energies'])}, but the run has {_listed(student.energies)}"
    elif saved["format"] != student.format:
        problem = f"was written by another version of guidedcd (format {saved['format']})"
    if problem:
        raise GuidedCDError(f"checkpoint {path} {problem}. Move it away, or choose another --out.")


def _listed(energies: Sequence[str]) -> str:
    return f"the energies {shortened(', '.join(energies))}" if energies else "no energy"


def verify(path: Path) -> None:
    """Compare a checkpoint's files with the checksums that were written with them, and its step with its name.

    Raises:
        GuidedCDError: They differ, or a file may not be read.
    """
    try:
        manifest = read_json(path / CHECKSUMS, {"step": int, "sha256": {str: str}})
        if manifest["step"] != int(path.name[5:]):
            raise damaged(path, f"its name does not fit its files, which are of step {manifest['step']}")
        names = {file.name for file in path.iterdir()} - {CHECKSUMS}
        for name, checksum in manifest["sha256"].items():
            if name not in names:
                raise damaged(path, f"{name} is missing")
            if file_digest(path / name) != checksum:
                raise damaged(path, f"the checksum of {name} differs")
        # Hidden files are those of file managers.
        unlisted = sorted(name for name in names - set(manifest["sha256"]) if not name.startswith("."))
        if unlisted:
            raise damaged(path, f"{CHECKSUMS} has no checksum of {unlisted[0]}")
    except NoPermissionError:
        raise
    except GuidedCDError as error:
        raise error if str(error).startswith("checkpoint ") else damaged(path, str(error).rstrip(".")) from None
    except OSError as error:
        raise unreadable(error, path) from error


def damaged(path: Path, why: object) -> GuidedCDError:
    """The error for a damaged checkpoint."""
    return GuidedCDError(
        f"checkpoint {path} is damaged ({why}). Delete it: the run continues from the one before it, or from the start."
    )


def _like(value: Any, shape: torch.Size) -> bool:
    """Whether a value of an optimiser's state is float32 and has the shape of its weight; counters and 8-bit states
    are not and have not."""
    return isinstance(value, Tensor) and value.shape == shape and value.dtype == torch.float32 and value.dim() > 0


def _mapped(states: dict[int, Any], like: Sequence[Tensor], change: Callable[[int, Tensor], Tensor]) -> dict[int, Any]:
    """An optimiser's states by number of the weight, with `change` applied to every tensor that is like its weight."""
    return {
        number: {k: change(number, v) if _like(v, like[number].shape) else v for k, v in values.items()}
        for number, values in states.items()
    }


def _check_moments(states: dict[int, Any], like: Sequence[Tensor]) -> None:
    """AdamW accepts moments of any shape and value, and fails at its next step or gives weights that are not finite.

    Raises:
        ValueError: A moment has not the shape of its weight, or a value is not finite.
    """
    for number, values in states.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
                raise ValueError(f"the optimiser's {name} of weight {number} is not finite")
        for name in ("exp_avg", "exp_avg_sq"):
            if name in values and not (like[number].dim() == 0 or _like(values[name], like[number].shape)):
                raise ValueError(f"the optimiser's {name} of weight {number} has another shape than the weight")


def _on_cpu(value: Any) -> Any:
    """A nested state with every tensor on the CPU."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(one) for key, one in value.items()}
    return [_on_cpu(one) for one in value] if isinstance(value, list) else value
