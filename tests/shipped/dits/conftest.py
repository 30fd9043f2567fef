"""Tiny folders of every family, written once a session."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import attrs
import pytest
import tiny_pipelines
import torch

import guidedcd


@attrs.frozen(kw_only=True)
class Tiny:
    """A tiny folder, the pipeline of diffusers that wrote it, and our teacher of it."""

    family: str
    folder: Path
    pipeline: Any
    teacher: Any
    """A `guidedcd.inference.teacher_pipeline.TeacherPipeline`."""
    size: dict[str, int]

    def call(self, prompts: list[str], **options: Any) -> torch.Tensor:
        """The pipeline's videos (B, F, 3, H, W) in [0, 1], or its latents."""
        size = {"num_frames": self.size["frames"], "height": self.size["height"], "width": self.size["width"]}
        result: torch.Tensor = self.pipeline(
            prompts, **size, **tiny_pipelines.CALL[self.family](self.teacher.teacher), output_type="pt", **options
        ).frames
        return result


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A function from (family, name of a size) to a `Tiny`; each is written once."""

    @functools.cache
    def make(family: str, name: str) -> Tiny:
        folder = tmp_path_factory.mktemp(f"{family}-{name}") / family
        choices = dict(tiny_pipelines.SIZES[family][name])
        size = choices.pop("size")
        pipeline = getattr(tiny_pipelines, family)(folder, **choices)
        teacher = guidedcd.load_teacher(f"{family}:{folder}", device="cpu", size=size)
        return Tiny(family=family, folder=folder, pipeline=pipeline, teacher=teacher, size=size)

    return make
