"""What published reward models share: options, files, weights, tokenizers and the image-text reward. No torch here."""

from __future__ import annotations

import attrs
from attrs.validators import in_

from guidedcd.configs import RewardConfig


@attrs.frozen(kw_only=True)
class RewardModelConfig(RewardConfig):
    """Options of a reward that is a pretrained network."""

    path: str = attrs.field(default="shapes", metadata={"positional": True})
    """The weights: `shapes` (the small embedded model), `auto` (cache folder, then the hub), or a file."""
    arch: str = "published"
    """Sizes of the network in a file: `published` (the released model), or a JSON file."""
    dtype: str = attrs.field(default="fp32", validator=in_(("fp32", "bf16", "fp16")))
    """Of the network's matrices; pixels are prepared and scores are computed in fp32."""
    antialias: bool = True
    """Resize with antialiasing, as torchvision has done since 0.17; false is what it did to tensors before."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
