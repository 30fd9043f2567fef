"""The proving ground: a small trained teacher, a dataset without end, and a metric that measures the truth."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import attrs
from attrs.validators import ge, gt, in_, le, optional

from guidedcd.plugins.configs import DatasetConfig, MetricConfig, OutputEnergyConfig, TeacherConfig
from guidedcd.plugins.hookspecs import hookimpl

CONTROL = 0.02
"""Default strength of the control energies."""


@attrs.frozen(kw_only=True)
class ShapesTeacherConfig(TeacherConfig):
    """Options of the teacher `shapes`."""

    proof: ClassVar[Path | None] = Path(__file__).parent / "proof.toml"

    path: str = attrs.field(default="embedded", metadata={"positional": True})
    """`embedded`, or a folder that `python -m guidedcd_shapes.recipe` wrote."""


@attrs.frozen(kw_only=True)
class ShapesDitConfig(TeacherConfig):
    """Options of the teacher `shapes-dit`."""

    path: str = attrs.field(default="embedded", metadata={"positional": True})
    """`embedded`, or a folder that `python -m guidedcd_shapes.recipe` wrote."""
    shift: float = attrs.field(default=3.0, validator=gt(0))
    """Shift of the noise levels of every solver's grid, s = shift u / (1 + (shift - 1) u); 1 is none."""


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


@attrs.frozen(kw_only=True)
class SlowMotionConfig(OutputEnergyConfig):
    """Options of the energy `slow-motion`."""

    default_relative: ClassVar[float] = CONTROL
    relative: float | None = attrs.field(default=None, validator=optional(ge(0)))
    """In place of `scale`: norm of the guided term relative to the norm of the prediction; 0.02 without a `scale`."""
    speed: float = attrs.field(default=0.5, validator=[ge(0), le(1)])
    """Share of the predicted speed at which objects are to move."""


@attrs.frozen(kw_only=True)
class RandomPushConfig(OutputEnergyConfig):
    """Options of the energy `random-push`."""

    default_relative: ClassVar[float] = CONTROL
    relative: float | None = attrs.field(default=None, validator=optional(ge(0)))
    """In place of `scale`: norm of the guided term relative to the norm of the prediction; 0.02 without a `scale`."""


@hookimpl
def register_energies(register):
    """Offer the controls `slow-motion` and `random-push`."""
    register(
        "slow-motion",
        "guidedcd_shapes.controls:SlowMotion",
        config=SlowMotionConfig,
        summary="a control with a known effect: objects move at half of their speed",
    )
    register(
        "random-push",
        "guidedcd_shapes.controls:RandomPush",
        config=RandomPushConfig,
        summary="a control without an effect: white noise as the gradient",
    )


@hookimpl
def register_teachers(register):
    """Offer `shapes` and `shapes-dit`."""
    register(
        "shapes",
        "guidedcd_shapes.teacher:ShapesTeacher",
        config=ShapesTeacherConfig,
        summary="moving shapes, 8 frames of 48 x 48 pixels; weights included, runs on a CPU",
    )
    register(
        "shapes-dit",
        "guidedcd_shapes.dit:ShapesDit",
        config=ShapesDitConfig,
        summary="the same videos from a small flow-matching transformer of Wan's class; weights included",
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
