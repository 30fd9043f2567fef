"""Published students: T2V-Turbo v1 and v2 on VideoCrafter2.

Their energy input is called `pta`, as in this package: the official lambda 0.05 is scale 500.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import nn

from guidedcd.config import sections
from guidedcd.config.kinds import Chosen
from guidedcd.config.run import Run
from guidedcd.devices import blame_memory, dtype_of
from guidedcd.devices import device as find_device
from guidedcd.errors import GuidedCDError
from guidedcd.inference.pipeline import StudentPipeline
from guidedcd.models.checkpoints.reading import exists
from guidedcd.models.checkpoints.t2v_turbo import WHERE, read_student
from guidedcd.models.checkpoints.unet import load_unet
from guidedcd.models.guidance_inputs import GuidanceProjection
from guidedcd.models.student import Student
from guidedcd.models.teachers.contract import build_teacher
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.models.teachers.videocrafter2 import VideoCrafter2Teacher
from guidedcd.plugins.registry import load_plugins

ENERGY = "pta"


class PublishedStudent(Student):
    """A `Student` with a network from a file instead of a copy of the teacher's."""

    def __init__(self, teacher: Teacher, network: nn.Module, energies: tuple[str, ...]) -> None:
        """Take the network; `teacher` adapts calls."""
        nn.Module.__init__(self)
        self._teacher = (teacher,)
        self.config, self.energies = sections.Student(), energies
        self.network, self.averaged = network.requires_grad_(False), None


def load_student(path: str | Path, teacher: VideoCrafter2Teacher) -> PublishedStudent:
    """Read `unet_mg.pt`, `unet_no_mg.pt` or `unet_lora.pt`, in eval mode, for the teacher's frame rate and device.

    Args:
        path: The file.
        teacher: VideoCrafter2 with the architecture of the file; v1's low-rank file is added to its weights.

    Raises:
        GuidedCDError: The file is missing, damaged or something else, or the teacher is another model.
    """
    if not isinstance(teacher, VideoCrafter2Teacher):
        raise GuidedCDError(
            f"{path}: published T2V-Turbo students belong to VideoCrafter2; give --teacher videocrafter2:model.ckpt"
        )
    state = read_student(path, teacher.arch.unet, teacher.base_state())
    network = load_unet(teacher.arch.unet, state, fps=teacher.fps, dtype=teacher.dtype, device=teacher.device)
    projection = network.time_embedding.cond_proj
    if not isinstance(projection, GuidanceProjection):
        raise GuidedCDError(
            f"{path} has no guidance input (time_cond_proj), so it is a teacher's UNet and no student: "
            "use --teacher videocrafter2:FILE"
        )
    student = PublishedStudent(teacher, network, (ENERGY,) if projection.lambda_width else ())
    return student.eval()


def load_published(
    path: str | Path,
    teacher: Chosen,
    *,
    device: str | None = None,
    dtype: str = "float32",
    fraction: float | None = None,
) -> StudentPipeline:
    """Load a published student; the attribute `weights` of the pipeline is the file itself.

    Args:
        path: The student's file.
        teacher: The component `videocrafter2` with its options.
        device: Where tensors live; by default the best there is.
        dtype: "float32", "bfloat16" or "float16".
        fraction: Noisiest fraction of the timesteps at which the strength is an input of the student; by default
            a half, as in the script of the released sampler.

    Raises:
        GuidedCDError: A file is missing, damaged or of another model.
    """
    if fraction is not None and not 0 <= fraction <= 1:
        raise GuidedCDError(f"--fraction must lie between 0 and 1: {fraction:g}")
    weights_dtype = dtype_of(dtype)
    path = Path(path).expanduser()
    exists(path, "the student", WHERE)  # before minutes go into the teacher
    where = find_device("auto" if device is None else device)
    with blame_memory("the teacher"):
        built = build_teacher(teacher, where, weights_dtype if dtype != "float32" else None)
    with blame_memory("the student"):
        student = load_student(path, built)
    if fraction is not None and not student.energies:
        raise GuidedCDError(f"{path}: this student was trained without energies, so it has no --fraction.")
    # The released sampler allows any scale, whatever the student was trained with.
    free: dict[str, Any] = {"scale_range": (0.0, math.inf)} | ({} if fraction is None else {"fraction": fraction})
    energies = {name: load_plugins().get("energy", name).config(**free) for name in student.energies}
    everywhere = sections.Preprocess(fraction=1.0)  # nothing is preprocessed here, so every fraction is possible
    run = Run(teacher=teacher, data=(), energies=energies, preprocess=everywhere, device=str(where), name=path.stem)
    return StudentPipeline(run=run, teacher=built, student=student, folder=path.parent, weights=path)


def is_published(path: Path) -> bool:
    """Whether a path is a file that a published student may be in, and not a folder of ours."""
    return path.is_file() and path.suffix in {".pt", ".pth", ".ckpt", ".bin", ".safetensors"}
