"""The energy `pta`: primary temporal attention, which steers the teacher towards the motion of a reference video."""

from __future__ import annotations

import attrs
from attrs.validators import ge, in_

from guidedcd.plugins.configs import EnergyConfig
from guidedcd.plugins.hookspecs import hookimpl


@attrs.frozen(kw_only=True)
class PTAConfig(EnergyConfig):
    """Options of `pta`."""

    scale: float = attrs.field(default=500.0, validator=ge(0))
    """Factor of the gradient of the mean energy (lambda in the paper), at least 0; published for VideoCrafter2."""
    layers: str = "official"
    """Temporal attention layers: `official` (the first of every up block), `motionclone`, `all`, or name prefixes."""
    top: int = attrs.field(default=1, validator=ge(1))
    """Number of entries per attention row that are compared: the largest ones of the reference."""
    ties: str = attrs.field(default="first", validator=in_(("first", "all")))
    """Of equally large entries, compare the `first`, or `all` as in the paper's Eq. 7."""


@hookimpl
def register_energies(register):
    """Offer `pta`."""
    register(
        "pta",
        "guidedcd_pta.energy:PTA",
        config=PTAConfig,
        summary="primary temporal attention: the motion of the sample's reference video",
    )
