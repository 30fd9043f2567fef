"""A reward for the amount of motion, which needs no network."""

from __future__ import annotations

import attrs
from attrs.validators import ge, gt, in_, le

from guidedcd import RewardConfig, hookimpl
from guidedcd.plugins.configs import PICKS


@attrs.frozen(kw_only=True)
class MotionConfig(RewardConfig):
    """Options of the reward `motion`."""

    frames: int = attrs.field(default=8, validator=ge(2))
    """Number of frames of each video that are decoded and scored; with all frames of the video, the speed is that of
    neighbouring frames."""
    pick: str = attrs.field(default="strided", validator=in_(PICKS))
    """Which frames: `strided` (evenly spaced from a random start), `random` (without replacement, in order), or `even`
    (evenly spaced with the first and the last)."""
    target: float = attrs.field(default=0.03, validator=[gt(0), le(0.06)])
    """Speed above which the reward no longer rises, as a fraction of the short side per scored frame, at most 0.06."""
    margin: float = attrs.field(default=0.7, validator=ge(0))
    """The reward is highest between `target` and exp(`margin`) times `target`, and falls beyond; 0.7 is twice."""


@hookimpl
def register_rewards(register):
    """Offer `motion`."""
    register(
        "motion",
        "guidedcd_motion.reward:Motion",
        config=MotionConfig,
        summary="speed of what moves, up to a target; noise and flicker are no motion",
    )
