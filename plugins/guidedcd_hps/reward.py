"""HPS v2.1 (Wu et al., arXiv:2306.09341): a ViT-H/14 CLIP fine-tuned on human preferences between images."""

from __future__ import annotations

from guidedcd_shapes.rewards import embedded_source

from guidedcd.models.checkpoints.hub import Published
from guidedcd.rewards import pixels
from guidedcd.rewards.image_text import ImageTextReward, Source, released
from guidedcd.rewards.tokenizers import Tokenizer
from guidedcd_hps import HPSConfig

PUBLISHED = Published(
    repo="xswu/HPSv2",
    files=("HPS_v2.1_compressed.pt",),
    size="2.0 GB",
    folders=("~/.cache/hpsv2",),
)


def source(config: HPSConfig) -> Source:
    """The source of the network: embedded, published, or a file."""
    return embedded_source("hps") if config.path == "shapes" else released(config, PUBLISHED, "hps")


class HPS(ImageTextReward):
    """Mean cosine of frames and caption; typically 0.2 to 0.35 for the released weights."""

    def __init__(self, config: HPSConfig, *, weights: bool = True) -> None:
        options = {"tiled": config.tiled_captions, "weights": weights}
        super().__init__(config, what="hps", source=source(config), prepare=pixels.hps, **options)

    @staticmethod
    def tokens(config: HPSConfig) -> Tokenizer:
        """The tokenizer alone, without the network."""
        return source(config).tokenizer()
