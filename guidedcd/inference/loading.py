"""Loading of students and teachers by folder, file or name. Torch is imported after the arguments are checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from guidedcd.config.from_python import evaluation_of
from guidedcd.config.kinds import Chosen
from guidedcd.config.merge import choose
from guidedcd.devices import blame_memory, dtype_of
from guidedcd.devices import device as find_device
from guidedcd.errors import GuidedCDError
from guidedcd.inference.student_folders import locate
from guidedcd.plugins.registry import load_plugins

if TYPE_CHECKING:
    from guidedcd.inference.pipeline import StudentPipeline
    from guidedcd.inference.teacher_pipeline import TeacherPipeline


def load_student(
    path: str | Path,
    teacher: str | Chosen | None = None,
    *,
    device: str | None = None,
    dtype: str = "float32",
    size: Mapping[str, int] | None = None,
    fraction: float | None = None,
) -> StudentPipeline:
    """Load the student of a run or a published student.

    Args:
        path: A run's folder, a student's or checkpoint's folder inside it, or the file of a published student.
        teacher: The base model of a published student, such as "videocrafter2:model.ckpt"; a run names its own.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps"; by default as in the run.
        dtype: "float32", "bfloat16" or "float16".
        size: Other `frames`, `height` or `width` (pixels) than the teacher has.
        fraction: Noisiest fraction of the timesteps at which the energy of a published student acts.

    Raises:
        GuidedCDError: There is no student, or its teacher is missing or superfluous.
    """
    path = Path(path).expanduser()
    if not path.exists() and teacher is None:
        raise GuidedCDError(f"there is no folder of a run and no file {path}.")
    if path.is_dir():
        if teacher is not None:
            raise GuidedCDError(f"{path} is a folder of a run, which names its teacher. Leave out --teacher.")
        locate(path)
        from guidedcd.inference.pipeline import StudentPipeline

        return StudentPipeline.from_run(path, device=device, dtype=dtype, size=size)
    if teacher is None:
        raise GuidedCDError(
            f"{path} is a file and no folder of a run. A published student needs its base model as well, such as "
            "--teacher videocrafter2:model.ckpt."
        )
    chosen = _teacher(teacher)
    from guidedcd.inference.pipeline import with_options
    from guidedcd.inference.published import load_published

    return load_published(path, with_options(chosen, size or {}), device=device, dtype=dtype, fraction=fraction)


def load_teacher(
    name: str | Chosen,
    *,
    device: str = "auto",
    dtype: str = "float32",
    size: Mapping[str, int] | None = None,
) -> TeacherPipeline:
    """Load a teacher.

    Args:
        name: "shapes", or with its weights, such as "videocrafter2:model.ckpt".
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        dtype: "float32", "bfloat16" or "float16".
        size: Other `frames`, `height` or `width` (pixels) than the teacher has.

    Raises:
        GuidedCDError: There is no such teacher, or its weights cannot be read.
    """
    chosen = _teacher(name)
    from guidedcd.inference.pipeline import with_options
    from guidedcd.inference.teacher_pipeline import TeacherPipeline
    from guidedcd.models.teachers.contract import build_teacher

    weights_dtype = dtype_of(dtype)
    chosen = with_options(chosen, size or {})
    where = find_device(device)
    with blame_memory("the teacher"):
        teacher = build_teacher(chosen, where, weights_dtype if dtype != "float32" else None)
    return TeacherPipeline(teacher, evaluation_of(chosen.name).omega)


def _teacher(teacher: str | Chosen) -> Chosen:
    if isinstance(teacher, Chosen):
        return teacher
    return choose("teacher", teacher, {}, "teacher", load_plugins())
