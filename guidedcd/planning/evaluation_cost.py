"""Cost of an evaluation: network calls and decoding, counted on the meta device."""

from __future__ import annotations

import attrs
import torch

from guidedcd.config.sections import EvaluateConfig
from guidedcd.data import prompts
from guidedcd.devices import dtype_of
from guidedcd.inference.pipeline import solvers
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.planning.gpus import Machine
from guidedcd.planning.meter import Cost, metered
from guidedcd.planning.preprocess_cost import empty, inputs

ROWS = 4
"""Samples of a counted pass."""


@attrs.frozen(kw_only=True)
class EvaluationCost:
    """The cost of an evaluation without its metrics."""

    calls: int
    """Network calls."""
    videos: int
    """Videos, all of which are decoded."""
    forward: Cost
    """A call of `ROWS` samples."""
    decode: Cost
    """Decoding of `ROWS` videos."""

    @property
    def flops(self) -> float:
        """Operations of the whole evaluation."""
        return (self.calls * self.forward.flops + self.videos * self.decode.flops) / ROWS

    def seconds(self, machine: Machine) -> float:
        """Seconds of the whole evaluation."""
        return (self.calls * machine.seconds(self.forward) + self.videos * machine.seconds(self.decode)) / ROWS


def evaluation(config: EvaluateConfig, teacher: Teacher) -> EvaluationCost:
    """Count a call of the teacher's network, which is also the student's, and the decoding of videos.

    Args:
        config: The options of the evaluation.
        teacher: The teacher on the meta device; it is modified.
    """
    if isinstance(config.prompts, int):
        splits, choosing = prompts.evaluation(teacher, config.prompts)
        count = sum(map(len, splits.values()))
    else:
        count, choosing = len(prompts.as_prompts(config.prompts)), []
    calls, videos = config.work(
        count,
        shown=min(config.videos, count),
        choosing=len(choosing),
        solvers=len(solvers(teacher.schedule.prediction)),
    )
    for module in (teacher.network, getattr(teacher, "vae", None)):
        if isinstance(module, torch.nn.Module):
            module.to(dtype_of(config.dtype))
    z, t, text = inputs(teacher, ROWS)
    with torch.no_grad():
        with metered() as forward:
            teacher.net(z, t, text)
        with metered() as decode:
            teacher.decode(empty(ROWS, *teacher.geometry.latent_shape))
    return EvaluationCost(calls=calls, videos=videos, forward=forward, decode=decode)
