"""PickScore v1: human preference between images, given the caption."""

from __future__ import annotations

import attrs
from attrs.validators import in_

from guidedcd import hookimpl
from guidedcd.plugins.configs import RewardModelConfig


@attrs.frozen(kw_only=True)
class PickScoreConfig(RewardModelConfig):
    """Options of the reward `pickscore`."""

    resize: str = attrs.field(default="squash", validator=in_(("squash", "crop")))
    """How a frame becomes a square: `squash` ignores the aspect ratio, `crop` keeps the centre."""


@hookimpl
def register_rewards(register):
    """Offer `pickscore`."""
    register(
        "pickscore",
        "guidedcd_pickscore.reward:PickScore",
        config=PickScoreConfig,
        summary="human preference of frames (PickScore v1)",
    )
