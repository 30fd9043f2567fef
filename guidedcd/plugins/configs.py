"""Frozen attrs base classes of the options of components. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import attrs
from attrs.validators import ge, gt, in_, le, optional

from guidedcd.devices import QUANTIZE, SHORT_DTYPES
from guidedcd.docstrings import documented
from guidedcd.errors import refusal

DEFAULT_RELATIVE = 0.1
"""The relative strength of an energy that states none; docs/decisions/0015-relative-default.md has measurements."""


REFERENCES = ("inversion", "single-step", "clean", "prediction")
"""The kinds of reference of an energy."""

PICKS = ("random", "strided", "even")
"""The ways to choose the frames that a reward receives."""


def _between(low: float, high: float):
    """A validator for a number in [low, high]."""
    return [ge(low), le(high)]


def _ascending(instance: object, attribute: attrs.Attribute, value: tuple[float, float] | None) -> None:
    if value is not None and not 0 <= value[0] <= value[1]:
        raise ValueError(refusal(f"'{attribute.name}'", value, "two numbers of at least 0, the lower one first"))


@documented
@attrs.frozen(kw_only=True)
class ComponentConfig:
    """Base class of all options; it has none."""


@documented
@attrs.frozen(kw_only=True)
class EnergyConfig(ComponentConfig):
    """Options of every energy, which the engine applies."""

    scale: float | None = attrs.field(default=None, validator=optional(ge(0)))
    """Factor of the gradient of the mean energy (lambda in the paper), at least 0; suits one energy and teacher."""
    relative: float | None = attrs.field(default=None, validator=optional(ge(0)))
    """In place of `scale`: norm of the guided term relative to the norm of the prediction; 0.1 without a `scale`."""
    scale_range: tuple[float, float] | None = attrs.field(default=None, validator=_ascending)
    """Draw `scale` or `relative`, one of which must be stated, from [low, high] for each sample, and 0 with probability
    0.1; the student takes it as input."""
    fraction: float = attrs.field(default=0.5, validator=_between(0, 1))
    """Fraction of the solver steps that are guided, the noisiest ones (tau in the paper), in [0, 1]."""
    reference: str = attrs.field(default="inversion", validator=in_(REFERENCES))
    """Reference of the energy: DDIM `inversion` (the paper), `single-step` noising (30 times cheaper), or `clean`;
    `prediction` for energies of the output."""

    default_relative: ClassVar[float] = DEFAULT_RELATIVE
    """The relative strength where neither `scale` nor `relative` is set; an energy's own options may have another."""

    @property
    def is_relative(self) -> bool:
        """Whether `strength` is relative to the prediction: `relative` is stated, or no `scale` is."""
        return self.relative is not None or self.scale is None

    @property
    def strength(self) -> float:
        """The scale, or the relative strength."""
        if self.relative is None and self.scale is not None:
            return self.scale
        return self.default_relative if self.relative is None else self.relative


@documented
@attrs.frozen(kw_only=True)
class OutputEnergyConfig(EnergyConfig):
    """Options of every energy of the output, whose class states `through = "output"`."""

    reference: str = attrs.field(default="prediction", validator=in_(REFERENCES))
    """Reference of the energy: the `prediction` at the same noise level, without guidance; `clean` latents; or the
    prediction at latents of a DDIM `inversion` or of `single-step` noising."""


@documented
@attrs.frozen(kw_only=True)
class RewardConfig(ComponentConfig):
    """Options of every reward, which the engine applies."""

    weight: float = attrs.field(default=1.0, validator=ge(0))
    """Weight of the reward in the loss, dimensionless, at least 0; with 0 the reward is only logged."""
    frames: int = attrs.field(default=2, validator=ge(1))
    """Number of frames of each video that are decoded and scored."""
    pick: str = attrs.field(default="random", validator=in_(PICKS))
    """Which frames: `random` (without replacement), `strided` (evenly spaced from a random start), or `even` (evenly
    spaced with the first and the last)."""
    quantize: str = attrs.field(default="no", validator=in_(QUANTIZE))
    """Keep the reward's weights in int8, half the memory of bf16; `guidedcd try reward` measures the error."""

    def count(self, total: int, clip_fps: float) -> int:
        """Number of frames that are decoded and scored of videos with `total` frames at `clip_fps` frames per second.

        A reward whose number depends on the video overrides this.
        """
        return self.frames


@documented
@attrs.frozen(kw_only=True, slots=False)  # without slots it can be one of several base classes
class WrapperConfig:
    """Options of a component that is made of one of another kind, which the value after ":" names."""

    inside: dict[str, Any] = attrs.field(factory=dict, metadata={"recorded": True})
    """Options of the component inside, which the engine takes from those of its kind: `--rewards.clip.path`."""


@documented
@attrs.frozen(kw_only=True)
class RouteConfig(ComponentConfig):
    """Base class of the options of a route; it has none."""


@documented
@attrs.frozen(kw_only=True)
class TeacherConfig(ComponentConfig):
    """Base class of the options of a teacher; it has none."""

    proof: ClassVar[Path | None] = None
    """The file of claims that `guidedcd prove` tests with this teacher, if its plugin ships one."""


@documented
@attrs.frozen(kw_only=True)
class DatasetConfig(ComponentConfig):
    """Options of every dataset."""

    weight: float = attrs.field(default=1.0, validator=gt(0))
    """Weight of this dataset in the mixture, relative to the other datasets."""


@documented
@attrs.frozen(kw_only=True)
class MetricConfig(ComponentConfig):
    """Base class of the options of a metric; it has none."""


@documented
@attrs.frozen(kw_only=True)
class SuiteConfig(ComponentConfig):
    """Options of every suite."""

    prompts: Path | None = None
    """The benchmark's own files of prompts, from which videos are generated."""
    seed: int = attrs.field(default=0, validator=_between(0, 2**32))
    """Seed of the first video; the seed of each further video is higher by one."""


@documented
@attrs.frozen(kw_only=True)
class RewardModelConfig(RewardConfig):
    """Options of a reward that is a pretrained network."""

    path: str = attrs.field(default="auto", metadata={"positional": True})
    """Weights: `auto` (from the cache folder or the hub), or a file."""
    arch: str = "published"
    """Sizes of the network: `published` (the released model), or a JSON file."""
    dtype: str = attrs.field(default="fp32", validator=in_(tuple(SHORT_DTYPES)))
    """Dtype of the network's matrices; pixels are prepared and rewards computed in fp32."""
    antialias: bool = True
    """Resize with antialiasing, as torchvision does since 0.17; false gives its earlier results."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
