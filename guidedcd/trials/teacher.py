"""The teacher of a trial: its prompts, and videos of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from guidedcd.config.selection import Selection
from guidedcd.config.trials import TrialConfig
from guidedcd.data.clips import Prompt
from guidedcd.data.prompts import as_prompts, general
from guidedcd.inference.loading import load_teacher
from guidedcd.inference.teacher_pipeline import TeacherPipeline

ADVICE = "Use fewer --videos or --dtype float16."
"""What the error of full memory recommends."""


def teacher_of(selection: Selection, config: TrialConfig) -> TeacherPipeline:
    """The teacher on its device.

    Raises:
        GuidedCDError: Its weights cannot be read, or there is no such device.
    """
    return load_teacher(selection.teacher, device=config.device, dtype=config.dtype)


def omega_of(selection: Selection, config: TrialConfig) -> float:
    """The guidance strength of a trial."""
    return selection.evaluate.omega if config.omega is None else config.omega


def prompts_of(pipeline: TeacherPipeline, texts: Sequence[str] | Path | None, count: int) -> list[Prompt]:
    """Prompts from texts or a file, or the first `count` of the teacher's own that name a motion.

    Raises:
        GuidedCDError: A file of prompts cannot be read.
    """
    if texts:
        return as_prompts(texts)
    own = getattr(pipeline.teacher, "prompts", general)
    return list(own("motion", count))


def seeds_of(config: TrialConfig, count: int) -> list[int]:
    """The seeds of `count` videos."""
    return list(range(config.seed, config.seed + count))
