"""Options of `guidedcd try`, as flags and in Python. No torch."""

from __future__ import annotations

from pathlib import Path

import attrs
from attrs.validators import ge, in_, optional

from guidedcd.config.sections import GuidanceRule, GuiderConfig
from guidedcd.config.validators import MOST_PROMPTS, is_device, is_seed
from guidedcd.devices import DTYPES
from guidedcd.plugins.configs import _between


@attrs.frozen(kw_only=True)
class TrialConfig(GuiderConfig):
    """How the teacher samples videos to try a component on."""

    steps: int = attrs.field(default=8, validator=_between(1, 1000))
    """Points of the solver's grid."""
    omega: float | None = attrs.field(default=None, validator=optional(ge(0)))
    """Guidance strength; by default that of the profile's evaluation. guidance_scale is omega + 1."""
    videos: int = attrs.field(default=1, validator=_between(1, MOST_PROMPTS))
    """How many of the teacher's own prompts are sampled where none is given."""
    seed: int = attrs.field(default=0, validator=is_seed)
    """Seed of the first prompt; the seed of each further prompt is higher by one."""
    dtype: str = attrs.field(default="float32", validator=in_(DTYPES))
    """What the networks compute in."""
    device: str = attrs.field(default="auto", validator=is_device)
    """Where tensors live: auto, cpu, cuda, cuda:N or mps."""


@attrs.frozen(kw_only=True)
class EnergyTrialConfig(TrialConfig, GuidanceRule):
    """How an energy is tried."""

    reference: Path | None = None
    """Video that the energy compares with; by default the first clip of the profile's data set."""
    reference_prompt: str | None = None
    """Caption of the reference; by default the prompt in its metadata, else the prompt of each video."""
