"""Energies of self-attention over space and time, of video transformers: `amf` and `pta-3d`."""

from __future__ import annotations

import attrs
from attrs.validators import ge, gt, le, optional

from guidedcd.errors import refusal
from guidedcd.plugins.configs import EnergyConfig
from guidedcd.plugins.hookspecs import hookimpl


def _odd(instance: object, attribute: attrs.Attribute, value: int) -> None:
    if value < 1 or value % 2 == 0:
        raise ValueError(refusal(f"'{attribute.name}'", value, "an odd number of at least 1"))


@attrs.frozen(kw_only=True)
class AMFConfig(EnergyConfig):
    """Options of `amf`."""

    fraction: float = attrs.field(default=0.2, validator=[ge(0), le(1)])
    """Fraction of the solver steps that are guided, the noisiest ones; DiTFlow guides the first fifth."""
    block: int | None = attrs.field(default=None, validator=optional(ge(0)))
    """The transformer block whose self-attention is read, from 0; by default the one at half the depth."""
    span: int = attrs.field(default=4, validator=ge(1))
    """The largest distance of two compared latent frames, at least 1."""
    temperature: float = attrs.field(default=2.0, validator=gt(0))
    """Factor of the logits before the softmax, above 0."""


@attrs.frozen(kw_only=True)
class PTA3DConfig(EnergyConfig):
    """Options of `pta-3d`."""

    block: int | None = attrs.field(default=None, validator=optional(ge(0)))
    """The transformer block whose self-attention is read, from 0; by default the one at half the depth."""
    neighbourhood: int = attrs.field(default=3, validator=_odd)
    """Height and width, in tokens, of the square around a position whose keys count; an odd number."""


@hookimpl
def register_energies(register):
    """Offer `amf` and `pta-3d`."""
    register(
        "amf",
        "guidedcd_attention_energies.displacements:AMF",
        config=AMFConfig,
        summary="attention motion flow: where attention moves between frames, as in the reference (transformers)",
    )
    register(
        "pta-3d",
        "guidedcd_attention_energies.neighbourhoods:PTA3D",
        config=PTA3DConfig,
        summary="primary attention over frames at each position, as in the reference (transformers)",
    )
