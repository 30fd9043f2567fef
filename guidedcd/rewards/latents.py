"""Rewards that read latents: the student's predictions as forward passes, with the clips that they compare with.

Legend: B samples of one source, b of them that a reward scores; latents (C, F, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from torch import Tensor

from guidedcd.data.routing import Route
from guidedcd.diffusion.seen import Seen, seen_of_latents, seen_of_output, seen_of_prediction
from guidedcd.models.teachers.protocol import Teacher

FRAMES, LATENTS = "frames", "latents"
"""Values of `reads`, what a reward receives."""
REFERENCES = (None, "prediction", "clean")
"""Values of `reference`, what a reward that reads latents compares with."""


def reads_latents(reward: Any) -> bool:
    """Whether a reward receives predicted latents instead of decoded frames."""
    return getattr(reward, "reads", FRAMES) == LATENTS


def reference_of(reward: Any) -> str | None:
    """The kind of reference of a reward that reads latents."""
    return getattr(reward, "reference", None) if reads_latents(reward) else None


def scores_own_videos(reward: Any) -> bool:
    """Whether a reward can score videos that the student samples itself, which have no clip to compare with."""
    return reference_of(reward) is None


@attrs.frozen(kw_only=True, eq=False)
class StudentPredictions:
    """Clean latents that the student predicts from one source, and where it predicts them."""

    latents: Tensor
    """Predicted clean latents (B, C, F, H, W), with a gradient."""
    routes: Sequence[Route]
    """The route of each sample (B)."""
    z: Tensor
    """The noisy latents, like `latents`."""
    t: Tensor
    """Their training timesteps (B,), int64."""
    clips: Tensor | None = None
    """Clean latents of the clips, like `latents`; None for videos that the student samples itself."""
    outputs: Tensor | None = None
    """The teacher's prediction with the caption at `z`, like `latents`, with the same exception."""

    def inputs(self, rows: Sequence[int], captions: Sequence[str], reward: Any, teacher: Teacher) -> tuple[Any, ...]:
        """What a reward is called with for the samples `rows`: (seen, captions, reference)."""
        index = list(rows)
        z, t = self.z[index], self.t[index]
        frames = teacher.geometry.frames
        seen = seen_of_prediction(teacher.schedule, z, t, self.latents[index], captions, teacher.decode, frames=frames)
        return seen, list(captions), self._reference(index, captions, reward, teacher)

    def _reference(self, index: list[int], captions: Sequence[str], reward: Any, teacher: Teacher) -> Seen | None:
        kind, frames = reference_of(reward), teacher.geometry.frames
        if kind is None or self.clips is None or self.outputs is None:
            return None
        z, t = self.z[index], self.t[index]
        if kind == "clean":
            return seen_of_latents(self.clips[index], t, captions, teacher.decode, frames=frames)
        output = self.outputs[index].to(z.dtype)
        return seen_of_output(teacher.schedule, z, t, output, captions, teacher.decode, frames=frames)
