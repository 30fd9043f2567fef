"""InternVideo2 stage 2: how well a whole video matches its caption, motion included."""

from __future__ import annotations

import attrs
from attrs.validators import ge, in_

from guidedcd import hookimpl
from guidedcd.plugins.configs import PICKS, RewardModelConfig


@attrs.frozen(kw_only=True)
class InternV2Config(RewardModelConfig):
    """Options of the reward `internv2`."""

    path: str = attrs.field(default="shapes", metadata={"positional": True})
    """Weights: `shapes` (the small embedded model), `auto` (from the cache folder or the hub), or a file."""
    frames: int = attrs.field(default=4, validator=ge(1))
    """Number of frames of each video that are decoded and scored as one clip; the released model was trained with 4."""
    pick: str = attrs.field(default="strided", validator=in_(PICKS))
    """Which frames: `strided` (evenly spaced from a random start), `random` (without replacement, in order), or `even`
    (evenly spaced with the first and the last)."""
    vocab: str = "auto"
    """BERT's uncased vocab.txt: `auto` (from the cache folder or the hub), or a file."""
    gelu: str = attrs.field(default="erf", validator=in_(("erf", "tanh")))
    """GELU of the video tower: `erf` (exact), or `tanh` (as in the fused GPU kernels of the released code)."""
    crop: str = attrs.field(default="random", validator=in_(("random", "centre")))
    """Crop of videos that are not square: `random` in training, or always the `centre`."""


@hookimpl
def register_rewards(register):
    """Offer `internv2`."""
    register(
        "internv2",
        "guidedcd_internv2.reward:InternV2",
        config=InternV2Config,
        summary="text alignment of whole videos (InternVideo2 stage 2, 1B)",
    )
