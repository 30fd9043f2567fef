"""VideoPrism LvT: how well a whole video matches its caption, motion included."""

from __future__ import annotations

import attrs
from attrs.validators import ge, in_

from guidedcd import RewardConfig, hookimpl
from guidedcd.devices import SHORT_DTYPES
from guidedcd.plugins.configs import PICKS


@attrs.frozen(kw_only=True)
class VideoPrismConfig(RewardConfig):
    """Options of the reward `videoprism`."""

    path: str = attrs.field(default="auto", metadata={"positional": True})
    """Weights: `auto` (google/videoprism-lvt-base-f16r288), another repository of the hub, or a folder in transformers'
    format with config, tokenizer and safetensors."""
    frames: int = attrs.field(default=8, validator=ge(1))
    """Number of frames of each video that are decoded and scored as one clip; the released base model was trained with
    16, and positions are interpolated for another number."""
    pick: str = attrs.field(default="strided", validator=in_(PICKS))
    """Which frames: `strided` (evenly spaced from a random start), `random` (without replacement, in order), or `even`
    (evenly spaced with the first and the last)."""
    dtype: str = attrs.field(default="fp32", validator=in_(tuple(SHORT_DTYPES)))
    """Dtype of the network; pixels are prepared and rewards computed in fp32."""


@hookimpl
def register_rewards(register):
    """Offer `videoprism`."""
    register(
        "videoprism",
        "guidedcd_videoprism.reward:VideoPrism",
        config=VideoPrismConfig,
        summary="text alignment of whole videos (VideoPrism LvT; needs transformers 5.13)",
    )
