"""Forward passes of few sizes, for networks that are compiled for each size."""

from __future__ import annotations

from torch import Tensor

from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.models.teachers.protocol import Cond, Teacher


class PaddedTeacher:
    """A teacher whose forward passes have three sizes only, padded with copies of the last row.

    Args:
        teacher: The teacher.
        rows: The largest size.
    """

    def __init__(self, teacher: Teacher, rows: int) -> None:
        self.teacher = teacher
        self.schedule: NoiseSchedule = teacher.schedule
        self.sizes = sorted({max(1, rows // 4), max(1, rows // 2), rows})

    def net(self, z: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The network's prediction at `z` (B, C, F, H, W) and `t` (B,), B at most `rows`, like `z`."""
        size = next(size for size in self.sizes if size >= len(z))
        rows = [min(row, len(z) - 1) for row in range(size)]
        return self.teacher.net(z[rows], t[rows], {key: value[rows] for key, value in cond.items()})[: len(z)]
