"""Rewards as energies, `--energies reward:clip`, and as metrics, `--metrics reward:clip`; energies as rewards,
`--rewards energy:dynamics`.
"""

from __future__ import annotations

import attrs
from attrs.validators import ge, gt, le

from guidedcd import MetricConfig, OutputEnergyConfig, RewardConfig, WrapperConfig, hookimpl
from guidedcd.config.validators import is_device, is_subrange


@attrs.frozen(kw_only=True)
class RewardEnergyConfig(OutputEnergyConfig, WrapperConfig):
    """Options of the energy `reward:NAME`."""

    reward: str = attrs.field(default="", metadata={"positional": "name", "kind": "reward"})
    """The reward, NAME[:VALUE]; its options are those of --rewards.NAME, of which weight and pick have no effect."""
    fraction: float = attrs.field(default=1.0, validator=[ge(0), le(1)])
    """Fraction of the solver steps that are guided, the noisiest ones; `part` narrows it."""
    part: tuple[float, float] = attrs.field(default=(0.0, 1 / 3), validator=is_subrange)
    """The part of the noise levels at which it acts, as fractions of the teacher's timesteps: by default the last third
    of the sampling, where decoded frames are sharp enough for a reward."""


@attrs.frozen(kw_only=True)
class EnergyRewardConfig(RewardConfig, WrapperConfig):
    """Options of the reward `energy:NAME`, of which frames and pick have no effect."""

    energy: str = attrs.field(default="", metadata={"positional": "name", "kind": "energy"})
    """The energy of the output, NAME[:VALUE]; its options are those of --energies.NAME, of which scale, relative,
    scale_range and fraction have no effect."""


@attrs.frozen(kw_only=True)
class RewardMetricConfig(MetricConfig, WrapperConfig):
    """Options of the metric `reward:NAME`."""

    reward: str = attrs.field(default="", metadata={"positional": "name", "kind": "reward"})
    """The reward, NAME[:VALUE]; its options are those of --rewards.NAME, of which weight and pick have no effect."""
    fps: float = attrs.field(default=8.0, validator=gt(0))
    """Frames per second of the videos, which a reward may read to choose its frames."""
    device: str = attrs.field(default="auto", validator=is_device)
    """Where the reward computes: auto, cpu, cuda, cuda:N or mps."""


@hookimpl
def register_metrics(register):
    """Offer `reward`."""
    register(
        "reward",
        "guidedcd_adapters.metric:RewardMetric",
        config=RewardMetricConfig,
        summary="any reward of finished videos, as a judge that the student was not trained on",
    )


@hookimpl
def register_energies(register):
    """Offer `reward`."""
    register(
        "reward",
        "guidedcd_adapters.energy:RewardEnergy",
        config=RewardEnergyConfig,
        summary="minus any reward, of the decoded prediction after guidance",
    )


@hookimpl
def register_rewards(register):
    """Offer `energy`."""
    register(
        "energy",
        "guidedcd_adapters.reward:EnergyReward",
        config=EnergyRewardConfig,
        summary="minus any energy of the output, of the student's own prediction",
    )
