"""PickScore v1 (Kirstain et al., arXiv:2305.01569): a ViT-H/14 CLIP of transformers, fine-tuned on human preferences.

Legend: B videos, F frames, E width of the shared space.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from guidedcd.acceleration.blocks import recomputed
from guidedcd.devices import dtype_of_short
from guidedcd.models.checkpoints.hub import Published, find
from guidedcd.models.checkpoints.loading import architecture, describing, fill, finish, open_weights, skeleton
from guidedcd.rewards import pixels
from guidedcd.rewards.frozen import FrozenReward
from guidedcd.rewards.tokenizers import Tokenizer, TransformersClipTokens
from guidedcd_pickscore import PickScoreConfig

PUBLISHED = Published(
    repo="yuvalkirstain/PickScore_v1", files=("model.safetensors", "pytorch_model.bin"), size="3.9 GB"
)
FULL: dict[str, Any] = {
    "projection_dim": 1024,
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
    },
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
        "hidden_act": "gelu",
    },
}
"""The released model, as transformers' `CLIPConfig`."""


def load_clip_model(
    sizes: Mapping[str, Any], state: Mapping[str, Tensor] | None, what: str, dtype: torch.dtype = torch.float32
) -> CLIPModel:
    """A frozen `CLIPModel` with the weights of `state`, loaded strictly by transformers' names; None loads none."""
    with describing(what):
        model = skeleton(lambda: CLIPModel(CLIPConfig(**sizes))).to(dtype)
    finish(model, "cpu")
    fill(model, state, what=what, unused=lambda key: key.endswith("embeddings.position_ids"))
    return model


class PickScore(FrozenReward):
    """Mean cosine of frames and caption; typically about 0.2 for the released weights."""

    model: CLIPModel

    def __init__(self, config: PickScoreConfig, *, weights: bool = True) -> None:
        sizes = architecture(config.arch, FULL, "pickscore")
        state = open_weights(find(config.path, PUBLISHED, "pickscore"), "pickscore") if weights else None
        model = load_clip_model(sizes, state, "pickscore", dtype_of_short(config.dtype))
        super().__init__(model, self.tokens(config))
        self.config = config
        if config.gradient_checkpointing:
            for layer in model.vision_model.encoder.layers:
                layer.forward = recomputed(layer.forward)

    @staticmethod
    def tokens(config: PickScoreConfig) -> Tokenizer:
        """The tokenizer alone, without the network."""
        sizes = CLIPConfig(**architecture(config.arch, FULL, "pickscore"))
        return TransformersClipTokens(sizes.text_config.max_position_embeddings)

    @property
    def image_size(self) -> int:
        """Height and width of the image tower's input, pixels."""
        return self.model.config.vision_config.image_size

    def pixel_features(self, pixel_values: Tensor) -> Tensor:
        """Prepared images (N, 3, S, S) -> unit vectors (N, E), float32."""
        projection = self.model.visual_projection
        pooled = self.model.vision_model(pixel_values=pixel_values.to(projection.weight.dtype)).pooler_output
        return nnf.normalize(projection(pooled).float(), dim=-1)

    def text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and mask (B, L) -> unit vectors (B, E), float32."""
        pooled = self.model.text_model(input_ids=ids, attention_mask=mask).pooler_output
        return nnf.normalize(self.model.text_projection(pooled).float(), dim=-1)

    def scores(self, video: Tensor, text: Tensor) -> Tensor:
        """Frames (B, F, 3, H, W) in [0, 1] and caption features (B, E) -> mean cosine over frames (B,)."""
        batch, frames = video.shape[:2]
        prepare = {"squash": pixels.clip, "crop": pixels.image_reward}[self.config.resize]
        image = self.pixel_features(prepare(video.flatten(0, 1), self.image_size, self.config.antialias))
        return (image * text.repeat_interleave(frames, dim=0)).sum(-1).view(batch, frames).mean(1)
