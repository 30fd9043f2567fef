"""CLIP ViT-H/14 trained on LAION-2B (open_clip's laion2b_s32b_b79k)."""

from __future__ import annotations

from pathlib import Path

from guidedcd_shapes.rewards import embedded_source

from guidedcd.models.checkpoints.hub import Published
from guidedcd.rewards import pixels
from guidedcd.rewards.image_text import ImageTextReward, Source, named, published_as, released
from guidedcd.rewards.tokenizers import Tokenizer
from guidedcd_clip import CLIPConfig

PUBLISHED = Published(
    repo="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    files=("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    size="3.9 GB",
)


def source(config: CLIPConfig) -> Source:
    """The source of the network: embedded, published, or a file."""
    if config.path == "shapes":
        return embedded_source("clip")
    published = PUBLISHED
    if config.path == "auto" and not Path(config.arch).is_file() and named(config.arch) is not None:
        published = published_as(config.arch)
    return released(config, published, "clip")


class CLIPScore(ImageTextReward):
    """Mean cosine of frames and caption; typically 0.1 to 0.4 for the released weights."""

    def __init__(self, config: CLIPConfig, *, weights: bool = True) -> None:
        super().__init__(config, what="clip", source=source(config), prepare=pixels.clip, weights=weights)

    @staticmethod
    def tokens(config: CLIPConfig) -> Tokenizer:
        """The tokenizer alone, without the network."""
        return source(config).tokenizer()
