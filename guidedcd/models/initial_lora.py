"""A LoRA file that a student starts from: the option `--student.init`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from guidedcd.errors import GuidedCDError
from guidedcd.files import file_digest
from guidedcd.models.teachers.protocol import Teacher


def check(teacher: Teacher, path: str) -> None:
    """Read the file and compare it with the teacher's denoiser, which stays as it is.

    Raises:
        GuidedCDError: The teacher reads no such files, or the file is missing, damaged or of another base.
    """
    _reader(teacher)(path)


def merge(teacher: Teacher, network: nn.Module, path: str) -> None:
    """Add the file's changes to the weights of `network`, a copy of the teacher's denoiser without adapters.

    Raises:
        GuidedCDError: As `check`.
    """
    _reader(teacher)(path, network)


def digest(path: str) -> str:
    """SHA-256 of the file.

    Raises:
        GuidedCDError: It cannot be read.
    """
    try:
        return file_digest(Path(path).expanduser())
    except OSError as error:
        raise GuidedCDError(f"--student.init {path} cannot be read ({error.strerror or error}).") from error


def check_digest(path: str, expected: str | None, folder: Path) -> None:
    """Check that a student's adapters belong to the present file.

    Raises:
        GuidedCDError: They were trained on another one.
    """
    if digest(path) != expected:
        raise GuidedCDError(f"{folder} holds adapters that were trained on another LoRA file than {path} is now.")


def _reader(teacher: Teacher) -> Any:
    reader = getattr(teacher, "add_lora", None)
    if not callable(reader):
        raise GuidedCDError(
            f"--student.init needs a teacher that reads LoRA files; that of {type(teacher.network).__name__} does not."
        )
    return reader
