"""Frozen attrs base classes of the options of components. No torch here."""

from __future__ import annotations

import attrs
from attrs.validators import ge, gt, in_, le, optional

from guidedcd.devices import SHORT_DTYPES


def _between(low: float, high: float):
    """A validator for a number in [low, high]."""
    return [ge(low), le(high)]


def _ascending(instance: object, attribute: attrs.Attribute, value: tuple[float, float] | None) -> None:
    if value is not None and not 0 <= value[0] <= value[1]:
        raise ValueError(f"'{attribute.name}' must be two numbers, 0 <= low <= high: {value}")


@attrs.frozen(kw_only=True)
class ComponentConfig:
    """Options every component may have: none."""


@attrs.frozen(kw_only=True)
class EnergyConfig(ComponentConfig):
    """Options every energy has; the engine applies them, the energy never sees them used."""

    scale: float = attrs.field(default=500.0, validator=ge(0))
    """Multiplies the energy's gradient, on the mean energy (the paper's lambda), dimensionless."""
    relative: float | None = attrs.field(default=None, validator=optional(ge(0)))
    """Instead of `scale`: the guided term's norm as a fraction of the prediction's norm, e.g. 0.3."""
    scale_range: tuple[float, float] | None = attrs.field(default=None, validator=_ascending)
    """Draw the scale (or relative) per sample from [low, high], 0 with probability 0.1: gives the student a slider."""
    fraction: float = attrs.field(default=0.5, validator=_between(0, 1))
    """Fraction tau of the noisiest solver steps that are guided, in [0, 1]."""
    reference: str = attrs.field(default="inversion", validator=in_(("inversion", "single-step", "clean")))
    """What the energy compares against: DDIM inversion (the paper), one noising step (30x cheaper), clean latents."""


@attrs.frozen(kw_only=True)
class RewardConfig(ComponentConfig):
    """Options every reward has; the engine applies them."""

    weight: float = attrs.field(default=1.0, validator=ge(0))
    """Multiplies the reward in the loss, dimensionless; 0 only logs it."""
    frames: int = attrs.field(default=2, validator=ge(1))
    """How many frames of each video are decoded and scored."""
    pick: str = attrs.field(default="random", validator=in_(("random", "strided")))
    """Which frames: `random` (without replacement) or `strided` (evenly spaced from a random start)."""


@attrs.frozen(kw_only=True)
class RouteConfig(ComponentConfig):
    """Options every route has: none."""


@attrs.frozen(kw_only=True)
class TeacherConfig(ComponentConfig):
    """Options every teacher has: none."""


@attrs.frozen(kw_only=True)
class DatasetConfig(ComponentConfig):
    """Options every dataset has."""

    weight: float = attrs.field(default=1.0, validator=gt(0))
    """This dataset's share of the mixture, relative to the others."""


@attrs.frozen(kw_only=True)
class MetricConfig(ComponentConfig):
    """Options every metric has: none."""


@attrs.frozen(kw_only=True)
class RewardModelConfig(RewardConfig):
    """Options of a reward that is a pretrained network."""

    path: str = attrs.field(default="auto", metadata={"positional": True})
    """The weights: `auto` (cache folder, then the hub), or a file."""
    arch: str = "published"
    """Sizes of the network in a file: `published` (the released model), or a JSON file."""
    dtype: str = attrs.field(default="fp32", validator=in_(tuple(SHORT_DTYPES)))
    """Of the network's matrices; pixels are prepared and scores are computed in fp32."""
    antialias: bool = True
    """Resize with antialiasing, as torchvision has done since 0.17; false is what it did to tensors before."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
