"""Rewards as energies: `--energies reward:clip`."""

from __future__ import annotations

import attrs
from attrs.validators import ge, le

from guidedcd import OutputEnergyConfig, WrapperConfig, hookimpl


def _part(instance: object, attribute: attrs.Attribute, value: tuple[float, float]) -> None:
    if not 0 <= value[0] < value[1] <= 1:
        raise ValueError(f"'{attribute.name}' must be two numbers in [0, 1], the lower one first (got {value!r})")


@attrs.frozen(kw_only=True)
class RewardEnergyConfig(OutputEnergyConfig, WrapperConfig):
    """Options of the energy `reward:NAME`."""

    reward: str = attrs.field(default="", metadata={"positional": "name", "kind": "reward"})
    """The reward, NAME[:VALUE]; its options are those of --rewards.NAME, of which weight and pick have no effect."""
    fraction: float = attrs.field(default=1.0, validator=[ge(0), le(1)])
    """Fraction of the solver steps that are guided, the noisiest ones; `part` narrows it."""
    part: tuple[float, float] = attrs.field(default=(0.0, 1 / 3), validator=_part)
    """The part of the noise levels at which it acts, as fractions of the teacher's timesteps: by default the last third
    of the sampling, where decoded frames are sharp enough for a reward."""


@hookimpl
def register_energies(register):
    """Offer `reward`."""
    register(
        "reward",
        "guidedcd_adapters.energy:RewardEnergy",
        config=RewardEnergyConfig,
        summary="minus any reward, of the decoded prediction after guidance",
    )
