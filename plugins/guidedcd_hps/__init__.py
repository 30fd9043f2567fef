"""HPS v2.1: human preference for a frame, given its caption."""

from __future__ import annotations

import attrs

from guidedcd import hookimpl
from guidedcd.plugins.configs import RewardModelConfig


@attrs.frozen(kw_only=True)
class HPSConfig(RewardModelConfig):
    """Options of the reward `hps`."""

    path: str = attrs.field(default="shapes", metadata={"positional": True})
    """Weights: `shapes` (the small embedded model), `auto` (from the cache folder or the hub), or a file."""
    tiled_captions: bool = False
    """Pair captions with frames as T2V-Turbo's code does, which is wrong for several videos of several frames."""


@hookimpl
def register_rewards(register):
    """Offer `hps`."""
    register("hps", "guidedcd_hps.reward:HPS", config=HPSConfig, summary="human preference of frames (HPS v2.1)")
