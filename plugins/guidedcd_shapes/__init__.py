"""The proving ground as components: a small trained teacher, an endless dataset, and an oracle of the truth."""

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
    """`web` (short honest captions, degraded videos), `dense` (clean videos, captions longer than rewards read), or
    `mix`: three web clips for each dense one."""
    size: int = attrs.field(default=20000, validator=ge(1))
    """How many clips; the first ones of a longer set are the same."""
    seed: int = 0
    """Another seed gives other clips."""
    motion: str = attrs.field(default="dynamic", validator=in_(("dynamic", "uniform", "pretrain")))
    """How fast things move: `dynamic` mostly fast, `pretrain` as slow as what the teacher was trained on."""


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
        summary="the embedded teacher of moving shapes, 8 frames of 48 x 48, runs anywhere",
    )


@hookimpl
def register_datasets(register):
    """Offer `shapes`."""
    register(
        "shapes",
        "guidedcd_shapes.dataset:Shapes",
        config=ShapesDataConfig,
        summary="captioned clips of moving shapes, drawn on demand",
    )


@hookimpl
def register_metrics(register):
    """Offer `shapes-oracle`."""
    register(
        "shapes-oracle",
        "guidedcd_shapes.metric:ShapesOracle",
        config=ShapesOracleConfig,
        summary="which attributes of a prompt a video shows, measured from its pixels",
    )
