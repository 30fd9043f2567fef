"""The energy `jerk`: its options, and the line that offers it. Nothing heavy is imported here."""

import attrs

from guidedcd import EnergyConfig, hookimpl


@attrs.frozen(kw_only=True)
class JerkConfig(EnergyConfig):
    """Options of `jerk`: a field here, with a default and a docstring, is a flag --energies.jerk.FIELD."""


@hookimpl
def register_energies(register):
    """Offer `jerk`."""
    register(
        "jerk",
        "guidedcd_jerk.energy:Jerk",
        config=JerkConfig,
        summary="match the third temporal difference of the reference's predicted latents",
    )
