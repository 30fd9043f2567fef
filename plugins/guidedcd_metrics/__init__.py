"""Metrics of flicker and motion; only the flow `raft` needs a network."""

from __future__ import annotations

from pathlib import Path

import attrs
from attrs.validators import ge, gt, in_

from guidedcd import MetricConfig, hookimpl


@attrs.frozen(kw_only=True)
class FlickerConfig(MetricConfig):
    """Options of `flicker`: none."""


@attrs.frozen(kw_only=True)
class DiversityConfig(MetricConfig):
    """Options of `diversity`: none."""


@attrs.frozen(kw_only=True)
class DynamicDegreeConfig(MetricConfig):
    """Options of `dynamic-degree`."""

    fps: float = attrs.field(default=8.0, validator=gt(0))
    """Frames per second of the videos; as in VBench, every max(1, round(fps / 8))-th frame is judged."""
    flow: str = attrs.field(default="auto", validator=in_(("auto", "dis", "classical", "raft")))
    """The optical flow: OpenCV's `dis`, a `classical` one in torch, or `raft` with `weights`, as VBench has it. auto is
    dis for frames of at least 128 pixels where OpenCV is installed, else classical."""
    weights: Path | None = None
    """Weights of torchvision's `raft_large`, only for the flow raft."""
    batch_size: int = attrs.field(default=64, validator=ge(1))
    """Number of pairs of frames whose optical flow is computed at once."""


@hookimpl
def register_metrics(register):
    """Offer `diversity`, `flicker` and `dynamic-degree`."""
    register(
        "diversity",
        "guidedcd_metrics.diversity:Diversity",
        config=DiversityConfig,
        summary="difference between the videos of one prompt, over the seeds of an evaluation",
    )
    register(
        "flicker",
        "guidedcd_metrics.flicker:Flicker",
        config=FlickerConfig,
        summary="temporal flickering by VBench's formula; 1 is none, and real motion lowers it too",
    )
    register(
        "dynamic-degree",
        "guidedcd_metrics.motion:DynamicDegree",
        config=DynamicDegreeConfig,
        summary="VBench's dynamic degree on OpenCV's DIS, a classical flow or RAFT, and the flow",
    )
