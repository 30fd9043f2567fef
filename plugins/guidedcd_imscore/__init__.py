"""The differentiable image scorers of the package imscore, which is installed separately."""

from __future__ import annotations

import attrs
from attrs.validators import in_

from guidedcd import RewardConfig, hookimpl

MODELS = (
    "hpsv2",
    "pickscore",
    "mps",
    "imagereward",
    "clipscore",
    "siglip",
    "cyclereward",
    "evalmuse",
    "vqascore",
    "laion-aesthetic",
)
"""Scorers by the names of the option `model`; `guidedcd_imscore.reward.SCORERS` has their classes."""


@attrs.frozen(kw_only=True)
class ImscoreConfig(RewardConfig):
    """Options of the reward `imscore`."""

    model: str = attrs.field(default="", validator=in_(("", *MODELS)), metadata={"positional": "name"})
    """The scorer: hpsv2, pickscore, mps, imagereward, clipscore, siglip, cyclereward, evalmuse, vqascore or
    laion-aesthetic."""
    path: str = "auto"
    """Weights: `auto` (imscore's repository on the hub), another repository, or a folder in its format."""


@hookimpl
def register_rewards(register):
    """Offer `imscore`."""
    register(
        "imscore",
        "guidedcd_imscore.reward:Imscore",
        config=ImscoreConfig,
        summary="image scorers of the package imscore: ImageReward, MPS, CycleReward and others",
    )
