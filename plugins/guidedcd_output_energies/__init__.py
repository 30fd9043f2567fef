"""Energies of the output: `x0-motion`, `dynamics` and `saturation`, functions of the predicted clean latents."""

from __future__ import annotations

from typing import ClassVar

import attrs
from attrs.validators import ge, le, optional

from guidedcd.config.validators import is_subrange
from guidedcd.plugins.configs import OutputEnergyConfig
from guidedcd.plugins.hookspecs import hookimpl

WEAK, STRONG = 0.01, 0.3
"""Default strengths, from the dose curves of decision 19: 0.03 of an energy that is never satisfied destroys guided
trajectories of the proving ground's teacher, and 0.3 of `dynamics`, which is 0 where it is satisfied, does not."""


@attrs.frozen(kw_only=True)
class X0MotionConfig(OutputEnergyConfig):
    """Options of `x0-motion`."""

    default_relative: ClassVar[float] = WEAK
    relative: float | None = attrs.field(default=None, validator=optional(ge(0)))
    """In place of `scale`: norm of the guided term relative to the norm of the prediction; 0.01 without a `scale`."""
    span: int | None = attrs.field(default=None, validator=optional(ge(1)))
    """The largest distance of two compared latent frames, at least 1; by default all pairs are compared."""
    motion: float = attrs.field(default=5.0, validator=ge(0))
    """Weight of the differences between frames (beta in FlowMotion)."""
    content: float = attrs.field(default=0.0, validator=ge(0))
    """Weight of the frames themselves (alpha in FlowMotion, which has 20): it also transfers appearance."""
    signed: bool = False
    """Compare differences with their sign, so that directions count, instead of their size."""


@attrs.frozen(kw_only=True)
class DynamicsConfig(OutputEnergyConfig):
    """Options of `dynamics`."""

    default_relative: ClassVar[float] = STRONG
    relative: float | None = attrs.field(default=None, validator=optional(ge(0)))
    """In place of `scale`: norm of the guided term relative to the norm of the prediction; 0.3 without a `scale`."""
    fraction: float = attrs.field(default=1.0, validator=[ge(0), le(1)])
    """Fraction of the solver steps that are guided, the noisiest ones; `levels` narrows it."""
    levels: tuple[float, float] = attrs.field(default=(0.5, 0.95), validator=is_subrange)
    """The noise levels at which it acts, sigma / (alpha + sigma) in [0, 1], which is sigma for flow models."""
    margin: float = attrs.field(default=0.0)
    """How much larger than the reference's the logarithm of the variance over frames is to be."""


@attrs.frozen(kw_only=True)
class SaturationConfig(OutputEnergyConfig):
    """Options of `saturation`."""

    default_relative: ClassVar[float] = WEAK
    relative: float | None = attrs.field(default=None, validator=optional(ge(0)))
    """In place of `scale`: norm of the guided term relative to the norm of the prediction; 0.01 without a `scale`."""
    fraction: float = attrs.field(default=1.0, validator=[ge(0), le(1)])
    """Fraction of the solver steps that are guided: all of them."""


@hookimpl
def register_energies(register):
    """Offer `x0-motion`, `dynamics` and `saturation`."""
    register(
        "x0-motion",
        "guidedcd_output_energies.energies:X0Motion",
        config=X0MotionConfig,
        summary="differences between the frames of the prediction, as in the reference",
    )
    register(
        "dynamics",
        "guidedcd_output_energies.energies:Dynamics",
        config=DynamicsConfig,
        summary="at least as much variance over frames as the reference: against a loss of motion",
    )
    register(
        "saturation",
        "guidedcd_output_energies.energies:Saturation",
        config=SaturationConfig,
        summary="channels that vary no more than the reference's: against oversaturation by guidance",
    )
