"""InternVideo2 stage 2 (arXiv:2403.15377) as a reward: the cosine between a clip and its caption.

Legend: B videos, T frames, E width of the shared space.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from guidedcd_shapes.models import embedded
from guidedcd_shapes.tokens import WorldTokens
from torch import Tensor

from guidedcd.devices import dtype_of_short
from guidedcd.models.checkpoints.hub import Published, find
from guidedcd.models.checkpoints.loading import architecture, assign, describing, fill, open_weights, skeleton
from guidedcd.rewards import pixels
from guidedcd.rewards.frozen import FrozenReward
from guidedcd.rewards.tokenizers import BertTokens, PlaceholderTokens, Tokenizer
from guidedcd_internv2 import InternV2Config
from guidedcd_internv2.model import FULL, InternVideo2, complete, is_unused

PUBLISHED = Published(
    repo="OpenGVLab/InternVideo2-Stage2_1B-224p-f4",
    files=("InternVideo2-stage2_1b-224p-f4.pt",),
    size="a few GB",
    note="accept its terms at huggingface.co/OpenGVLab/InternVideo2-Stage2_1B-224p-f4, hf auth login, then ",
)
VOCAB = Published(repo="google-bert/bert-large-uncased", files=("vocab.txt",), size="0.2 MB")


def load_internvideo2(
    sizes: Mapping[str, Any],
    state: Mapping[str, Tensor] | None,
    what: str = "internv2",
    dtype: torch.dtype = torch.float32,
    gelu: str = "erf",
) -> InternVideo2:
    """A frozen InternVideo2 with the weights of `state`, loaded strictly by the released names; None loads none."""
    with describing(what):
        fusion = complete(sizes)["bert"]["fusion_layer"]
        model = skeleton(lambda: InternVideo2(sizes, gelu=gelu)).to(dtype)
    _set_buffers(model)
    fill(model, state, what=what, unused=lambda key: is_unused(key, fusion))
    return model


def _set_buffers(model: InternVideo2) -> None:
    """Set BERT's buffers, which a checkpoint need not contain."""
    for name, buffer in list(model.named_buffers()):
        if name.endswith("position_ids"):
            assign(model, name, torch.arange(buffer.shape[-1]).expand(buffer.shape).clone())
        elif name.endswith("token_type_ids"):
            assign(model, name, torch.zeros(buffer.shape, dtype=torch.long))


class InternV2(FrozenReward):
    """Cosine of a clip of any number of frames with its caption, in [-1, 1]."""

    model: InternVideo2

    generator: torch.Generator | None = None
    """Source of random crops, which the engine sets in training; None crops at the centre."""

    def __init__(self, config: InternV2Config, *, weights: bool = True) -> None:
        shapes, state = config.path == "shapes", None
        sizes = embedded("internv2")[1] if shapes else architecture(config.arch, FULL, "internv2")
        if weights:
            path = embedded("internv2")[0] if shapes else find(config.path, PUBLISHED, "internv2")
            state = open_weights(path, "internv2")
        tokenizer = self.tokens(config) if weights else PlaceholderTokens(complete(sizes)["max_txt_l"])
        dtype = dtype_of_short(config.dtype)
        super().__init__(load_internvideo2(sizes, state, "internv2", dtype, config.gelu), tokenizer)
        self.model.gradient_checkpointing(config.gradient_checkpointing)
        self.config = config

    @staticmethod
    def tokens(config: InternV2Config) -> Tokenizer:
        """The tokenizer alone, without the network."""
        if config.path == "shapes":
            _, sizes = embedded("internv2")
            return WorldTokens(sizes.get("context") or complete(sizes)["max_txt_l"])
        sizes = architecture(config.arch, FULL, "internv2")
        return BertTokens(find(config.vocab, VOCAB, "internv2's vocabulary"), complete(sizes)["max_txt_l"])

    @property
    def image_size(self) -> int:
        """Height and width of the video tower's input, pixels."""
        return self.model.image_size

    def pixel_features(self, pixel_values: Tensor) -> Tensor:
        """Prepared clips (B, T, 3, S, S) -> unit vectors (B, E), float32."""
        return self.model.encode_video(pixel_values.to(self.model.vision_proj.weight.dtype))

    def text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and mask (B, L) -> unit vectors (B, E), float32."""
        return self.model.encode_text(ids, mask)

    def scores(self, video: Tensor, text: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) in [0, 1] and caption features (B, E) -> cosines (B,)."""
        generator = self.generator if self.config.crop == "random" else None
        clip = pixels.internvideo2(video, self.image_size, self.config.antialias, generator=generator)
        return (self.pixel_features(clip) * text).sum(-1)
