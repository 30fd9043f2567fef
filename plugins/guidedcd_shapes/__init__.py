"""The proving ground: a small trained teacher, a dataset without end, and a metric that measures the truth."""

from __future__ import annotations

import attrs
from attrs.validators import ge, in_

from guidedcd.plugins.configs import DatasetConfig, MetricConfig, TeacherConfig
from guidedcd.plugins.hookspecs import hookimpl


@attrs.frozen(kw_only=True)
class ShapesTeacherConfig(TeacherConfig):
    """Options of the teacher `shapes`."""

    path: str = attrs.field(default="embedded", metadata={"positional": True})
    """`embedded`, or a folder that `python -m guidedcd_shapes.recipe` wrote."""


@attrs.frozen(kw_only=True)
class ShapesDataConfig(DatasetConfig):
    """Options of the dataset `shapes`."""

    set: str = attrs.field(default="mix", validator=in_(("mix", "web", "dense")), metadata={"positional": True})
    """`web` (short captions, degraded videos), `dense` (clean videos, captions longer than rewards read), or `mix`
    (three web clips for each dense one)."""
    size: int = attrs.field(default=20000, validator=ge(1))
    """Number of clips; a longer set begins with the clips of a shorter one."""
    seed: int = 0
    """Seed of the clips."""
    motion: str = attrs.field(default="dynamic", validator=in_(("dynamic", "uniform", "pretrain")))
    """Speeds: `dynamic` (mostly fast), `uniform`, or `pretrain` (slow, as in the teacher's training)."""


@attrs.frozen(kw_only=True)
class ShapesOracleConfig(MetricConfig):
    """Options of the metric `shapes-oracle`: none."""


@hookimpl
def register_teachers(register):
    """Offer `shapes`."""
    register(
        "shapes",
        "guidedcd_shapes.teacher:ShapesTeacher",
        config=ShapesTeacherConfig,
        summary="moving shapes, 8 frames of 48 x 48 pixels; weights included, runs on a CPU",
    )


@hookimpl
def register_datasets(register):
    """Offer `shapes`."""
    register(
        "shapes",
        "guidedcd_shapes.dataset:Shapes",
        config=ShapesDataConfig,
        summary="captioned clips of moving shapes, drawn when they are read",
    )


@hookimpl
def register_metrics(register):
    """Offer `shapes-oracle`."""
    register(
        "shapes-oracle",
        "guidedcd_shapes.metric:ShapesOracle",
        config=ShapesOracleConfig,
        summary="share of a prompt's attributes that the video shows, measured from its pixels",
    )
