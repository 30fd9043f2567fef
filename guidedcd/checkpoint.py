"""Training checkpoints: student and optimiser, in folders that appear whole; the newest two are kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from guidedcd.devices import is_out_of_memory
from guidedcd.errors import GuidedCDError
from guidedcd.files import replacing

KEPT = 2


def save(folder: Path, step: int, student: Any, optimizer: torch.optim.Optimizer, scaler: Any = None) -> Path:
    """Write `step-NNNNNN/` with the student's weights and the states of optimiser and scaler, then drop old ones."""
    target = folder / f"step-{step:06d}"
    if not target.exists():
        with replacing(target) as part:
            part.mkdir(parents=True)
            student.save(part)
            averaged = student.averaged.state_dict() if student.averaged is not None else None
            state = {"step": step, "optimizer": optimizer.state_dict(), "averaged": averaged}
            state["scaler"] = scaler.state_dict() if scaler is not None else None
            with open(part / "state.pt", "wb") as handle:  # a full disk is only told apart through a file of ours
                torch.save(state, handle)
    for old in found(folder)[:-KEPT]:
        hidden = old.with_name(f".{old.name}.part")  # a checkpoint that is half deleted must not count as whole
        old.rename(hidden)
        shutil.rmtree(hidden)
    return target


def found(folder: Path) -> list[Path]:
    """All whole checkpoints, oldest first."""
    return sorted((path for path in folder.glob("step-*") if path.name[5:].isdigit()), key=lambda p: int(p.name[5:]))


def load(path: Path, student: Any, optimizer: torch.optim.Optimizer, scaler: Any = None) -> int:
    """Restore student, optimiser and scaler in place; returns the step.

    Raises:
        GuidedCDError: A file is damaged.
    """
    try:
        student.network.load_state_dict(load_file(path / "model.safetensors"), strict=student.config.kind == "full")
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        if student.averaged is not None:
            student.averaged.load_state_dict(state["averaged"])
        if scaler is not None and state.get("scaler"):
            scaler.load_state_dict(state["scaler"])
        return int(state["step"])
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise GuidedCDError(
            f"checkpoint {path} is damaged ({error}). Delete it: the run continues from the one before, or anew."
        ) from error
