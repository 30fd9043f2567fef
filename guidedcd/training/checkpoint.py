"""Training checkpoints: weights and optimiser, in folders that appear whole; the newest two are kept."""

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
from guidedcd.errors import GuidedCDError, NoPermissionError, unreadable
from guidedcd.files import file_digest, replacing, write_json
from guidedcd.models.student import Student
from guidedcd.training.master_weights import MasterWeights

KEPT = 2
CHECKSUMS = "checksums.json"
"""SHA-256 of a checkpoint's other files."""

State = dict[str, Tensor]


def weights_of(weights: MasterWeights) -> tuple[State, State | None]:
    """The trained weights and their average if there is one, whole, on the CPU; to be called in every process."""
    return weights.state(), weights.state(averaged=True) if weights.average is not None else None


def write_student(folder: Path, student: Student, online: State, average: State | None) -> None:
    """Write a student that samples with the average where there is one; the trained weights lie beside it."""
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
    """Write `step-NNNNNN/` with the student and the states of optimiser and scaler, then drop old ones.

    To be called in every process, of which one has `write`: weights may be spread over all of them.
    """
    target = folder / f"step-{step:06d}"
    if not target.exists():
        online, average = weights_of(weights)
        update = optimizer.state_dict()
        update["state"] = _changed(update["state"], weights.masters, weights.whole)
        state = {"step": step, "optimizer": _on_cpu(update)}
        state["scaler"] = scaler.state_dict() if scaler is not None else None
        if not write:
            return target
        with replacing(target) as part:
            write_student(part, student, online, average)
            with open(part / "state.pt", "wb") as handle:  # a full disk is only told apart through a file of ours
                torch.save(state, handle)
            files = {path.name: file_digest(path) for path in sorted(part.iterdir())}
            write_json(part / CHECKSUMS, {"step": step, "sha256": files})
    for old in found(folder)[:-KEPT] if write else ():
        hidden = old.with_name(f".{old.name}.part")  # a checkpoint that is half deleted must not count as whole
        old.rename(hidden)
        shutil.rmtree(hidden)
    return target


def found(folder: Path) -> list[Path]:
    """All whole checkpoints, oldest first."""
    numbered = (path for path in folder.glob("step-*") if re.fullmatch("[0-9]+", path.name[5:]))
    return sorted(numbered, key=lambda path: int(path.name[5:]))


def load(path: Path, weights: MasterWeights, optimizer: torch.optim.Optimizer, scaler: Any = None) -> int:
    """Restore weights, optimiser and scaler in place; returns the step.

    Raises:
        GuidedCDError: A file is missing, is damaged or belongs to another checkpoint, or may not be read.
    """
    verify(path)
    try:
        online = path / "online.safetensors"
        average = load_file(path / "model.safetensors") if weights.average is not None else None
        weights.load(load_file(online if average is not None else path / "model.safetensors"), average)
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        state["optimizer"]["state"] = _changed(state["optimizer"]["state"], weights.working, weights.part)
        optimizer.load_state_dict(state["optimizer"])
        if scaler is not None and state.get("scaler"):
            scaler.load_state_dict(state["scaler"])
        return int(state["step"])
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise damaged(path, error) from error


def verify(path: Path) -> None:
    """Compare a checkpoint's files with the checksums that were written with them, and its step with its name.

    Raises:
        GuidedCDError: They differ, or a file may not be read.
    """
    try:
        about = read_json(path / CHECKSUMS, {"step": int, "sha256": {str: str}})
        if about["step"] != int(path.name[5:]):
            raise damaged(path, f"its name does not fit its files, which are of step {about['step']}")
        names = {file.name for file in path.iterdir()} - {CHECKSUMS}
        for name, checksum in about["sha256"].items():
            if name not in names:
                raise damaged(path, f"{name} is missing")
            if file_digest(path / name) != checksum:
                raise damaged(path, f"the checksum of {name} differs")
    except NoPermissionError:
        raise
    except GuidedCDError as error:
        raise error if str(error).startswith("checkpoint ") else damaged(path, str(error).rstrip(".")) from None
    except OSError as error:
        raise unreadable(error, path) from error


def damaged(path: Path, why: object) -> GuidedCDError:
    """The user's sentence for a damaged checkpoint."""
    return GuidedCDError(
        f"checkpoint {path} is damaged ({why}). Delete it: the run continues from the one before, or anew."
    )


def _like(value: Any, shape: torch.Size) -> bool:
    """Whether an optimiser's state is one number per weight in float32: counters and 8-bit states are left alone."""
    return isinstance(value, Tensor) and value.shape == shape and value.dtype == torch.float32 and value.dim() > 0


def _changed(states: dict[int, Any], like: Sequence[Tensor], change: Callable[[int, Tensor], Tensor]) -> dict[int, Any]:
    """An optimiser's states, in the order in which it was given weights, with what is like a weight changed."""
    return {
        number: {k: change(number, v) if _like(v, like[number].shape) else v for k, v in values.items()}
        for number, values in states.items()
    }


def _on_cpu(value: Any) -> Any:
    """A nested state with every tensor on the CPU."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(one) for key, one in value.items()}
    return [_on_cpu(one) for one in value] if isinstance(value, list) else value
