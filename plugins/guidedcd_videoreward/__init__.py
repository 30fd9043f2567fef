"""VideoReward (Qwen2-VL-2B): visual quality, motion quality and text alignment of a whole video."""

from __future__ import annotations

import attrs
from attrs.validators import ge, gt, in_

from guidedcd import RewardConfig, hookimpl
from guidedcd.devices import SHORT_DTYPES
from guidedcd.plugins.configs import PICKS
from guidedcd_videoreward.protocol import MOST, even_count, sampled_count


@attrs.frozen(kw_only=True)
class VideoRewardConfig(RewardConfig):
    """Options of the reward `videoreward`."""

    path: str = attrs.field(default="auto", metadata={"positional": True})
    """Checkpoint: `auto` (KwaiVGI/VideoReward from the cache folder or the hub), a folder with its files, one of its
    checkpoint-* folders, or a model.pth in one."""
    arch: str = "published"
    """Sizes of the network: `published` (Qwen2-VL-2B-Instruct), or a config.json of Qwen2-VL."""
    quality: float = attrs.field(default=1.0, validator=ge(0))
    """Weight of visual quality (VQ) in the reward, dimensionless, at least 0."""
    motion: float = attrs.field(default=1.0, validator=ge(0))
    """Weight of motion quality (MQ) in the reward, dimensionless, at least 0."""
    alignment: float = attrs.field(default=1.0, validator=ge(0))
    """Weight of text alignment (TA) in the reward, dimensionless, at least 0; with 0 no caption is read."""
    normalised: bool = True
    """Weigh scores in standard deviations from the mean of the training clips, as published; false weighs raw ones."""
    frames: int = attrs.field(default=MOST, validator=ge(2))
    """Largest number of frames of each video that are decoded and scored, rounded to an even number; `fps` gives fewer
    for most videos."""
    fps: float = attrs.field(default=2.0, validator=gt(0))
    """Frames that are picked per second of a video, at least 4 in all; with another rate than the published one, scores
    cannot be compared."""
    pick: str = attrs.field(default="even", validator=in_(PICKS))
    """Which frames: `even` (evenly spaced with the first and the last, as published), `strided` (evenly spaced from a
    random start, so that no frame is left without a gradient), or `random` (without replacement, in order)."""
    min_pixels: int = attrs.field(default=100_352, validator=ge(3136))
    """Least area of a frame after resizing, pixels; smaller frames are enlarged."""
    max_pixels: int = attrs.field(default=0, validator=ge(0))
    """Largest area of a frame after resizing, pixels; 0 takes that of the checkpoint, published 200,704."""
    rounding: bool = True
    """Round pixels to 8 bits as the released code does; the gradient passes unchanged."""
    dtype: str = attrs.field(default="fp32", validator=in_(tuple(SHORT_DTYPES)))
    """Dtype of the network; the published weights are bf16. Pixels are prepared and scores computed in fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    def count(self, total: int, clip_fps: float) -> int:
        """Frames of a clip of `total` frames at `clip_fps` that are scored: an even number, or 0 if there is none."""
        return min(sampled_count(total, clip_fps, self.fps), even_count(total, self.frames))


@hookimpl
def register_rewards(register):
    """Offer `videoreward`."""
    register(
        "videoreward",
        "guidedcd_videoreward.reward:VideoReward",
        config=VideoRewardConfig,
        summary="visual quality, motion quality and text alignment of whole videos (VideoReward, Qwen2-VL-2B)",
    )
