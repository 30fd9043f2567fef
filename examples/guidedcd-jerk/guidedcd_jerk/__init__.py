"""The energy `jerk`: its options and its registration. Import no torch here: `guidedcd --help` imports this file."""

import attrs

from guidedcd import EnergyConfig, hookimpl


@attrs.frozen(kw_only=True)
class JerkConfig(EnergyConfig):
    """Options of `jerk`. Each field needs a default and a docstring, and becomes the flag --energies.jerk.FIELD."""


@hookimpl
def register_energies(register):
    """Register `jerk`."""
    register(
        "jerk",
        "guidedcd_jerk.energy:Jerk",
        config=JerkConfig,
        summary="match the third temporal difference of the reference's predicted latents",
    )
