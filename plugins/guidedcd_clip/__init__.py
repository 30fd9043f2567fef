"""CLIP ViT-H/14: how well a frame matches its caption."""

from __future__ import annotations

import attrs

from guidedcd import hookimpl
from guidedcd.plugins.configs import RewardModelConfig


@attrs.frozen(kw_only=True)
class CLIPConfig(RewardModelConfig):
    """Options of the reward `clip`."""

    path: str = attrs.field(default="shapes", metadata={"positional": True})
    """Weights: `shapes` (the small embedded model), `auto` (from the cache folder or the hub), or a file."""
    arch: str = "published"
    """Network: `published` (ViT-H-14), NAME/TAG of open_clip, such as ViT-B-32/laion2b_s34b_b79k, or a JSON file."""


@hookimpl
def register_rewards(register):
    """Offer `clip`."""
    register(
        "clip", "guidedcd_clip.reward:CLIPScore", config=CLIPConfig, summary="text alignment of frames (CLIP ViT-H/14)"
    )
