"""Training checkpoints: student and optimiser, in folders that appear whole; the newest two are kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from guidedcd.errors import GuidedCDError
from guidedcd.files import replacing

KEPT = 2


def save(folder: Path, step: int, student: Any, optimizer: torch.optim.Optimizer) -> Path:
    """Write `step-NNNNNN/` with the student's weights and the optimiser's state, then drop old ones."""
    target = folder / f"step-{step:06d}"
    if not target.exists():
        with replacing(target) as part:
            part.mkdir(parents=True)
            student.save(part)
            averaged = student.averaged.state_dict() if student.averaged is not None else None
            torch.save({"step": step, "optimizer": optimizer.state_dict(), "averaged": averaged}, part / "state.pt")
    for old in found(folder)[:-KEPT]:
        shutil.rmtree(old)
    return target


def found(folder: Path) -> list[Path]:
    """All whole checkpoints, oldest first."""
    return sorted(folder.glob("step-*"))


def load(path: Path, student: Any, optimizer: torch.optim.Optimizer) -> int:
    """Restore student and optimiser in place; returns the step.

    Raises:
        GuidedCDError: A file is damaged.
    """
    try:
        student.network.load_state_dict(load_file(path / "model.safetensors"), strict=student.config.kind == "full")
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        if student.averaged is not None:
            student.averaged.load_state_dict(state["averaged"])
        return int(state["step"])
    except Exception as error:
        raise GuidedCDError(
            f"checkpoint {path} is damaged ({error}). Delete it: the run continues from the one before, or anew."
        ) from error
