"""PTA: steer the teacher towards the motion of a reference video through its temporal attention (MotionClone)."""

from __future__ import annotations

import attrs
from attrs.validators import ge, in_

from guidedcd.plugins.configs import EnergyConfig
from guidedcd.plugins.hookspecs import hookimpl


@attrs.frozen(kw_only=True)
class PTAConfig(EnergyConfig):
    """Options of `pta`."""

    layers: str = "official"
    """Temporal attention compared: official (first of every up block), motionclone, all, or module-name prefixes."""
    top: int = attrs.field(default=1, validator=ge(1))
    """Entries compared per attention row: the largest of the reference."""
    ties: str = attrs.field(default="first", validator=in_(("first", "all")))
    """Equal largest entries: take the first (one per row), or all of them as in the paper's Eq. 7."""


@hookimpl
def register_energies(register):
    """Offer `pta`."""
    register(
        "pta",
        "guidedcd_pta.energy:PTA",
        config=PTAConfig,
        summary="match the temporal attention of the sample's own video (primary entries per row)",
    )
