"""Model-free metrics of finished videos: how much they flicker and how much they move."""

from __future__ import annotations

import attrs
from attrs.validators import ge, gt

from guidedcd import MetricConfig, hookimpl


@attrs.frozen(kw_only=True)
class FlickerConfig(MetricConfig):
    """Options of `flicker`: none."""


@attrs.frozen(kw_only=True)
class DynamicDegreeConfig(MetricConfig):
    """Options of `dynamic-degree`."""

    fps: float = attrs.field(default=8.0, validator=gt(0))
    """Frames per second of the videos; as in VBench every max(1, round(fps / 8))-th frame is judged."""
    batch_size: int = attrs.field(default=64, validator=ge(1))
    """Pairs of frames whose optical flow is computed at once."""


@hookimpl
def register_metrics(register):
    register(
        "flicker",
        "guidedcd_metrics.flicker:Flicker",
        config=FlickerConfig,
        summary="temporal flickering, exactly VBench's formula (1: none; real motion lowers it as well)",
    )
    register(
        "dynamic-degree",
        "guidedcd_metrics.motion:DynamicDegree",
        config=DynamicDegreeConfig,
        summary="VBench's dynamic-degree rule on classical optical flow (not RAFT), and the flow itself",
    )
