"""InternVideo2 stage 2, the two towers of its video-text score, in plain PyTorch and transformers.

Written from the published description (Wang et al., InternVideo2, arXiv:2403.15377) with the key names of the released
checkpoint, so that the released file loads strictly. Fusion layers, heads and distillation decoders are absent, as the
score does not use them. Attention is torch's `scaled_dot_product_attention`.

Legend: B videos, T frames, L text tokens, E width of the shared space.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import BertConfig, BertModel

from guidedcd_internv2.vision import VisionEncoder

FULL: dict[str, Any] = {
    "embed_dim": 512,
    "max_txt_l": 40,
    "vision": {
        "img_size": 224,
        "patch_size": 14,
        "embed_dim": 1408,
        "depth": 40,
        "num_heads": 16,
        "mlp_hidden": None,
        "attn_pool_num_heads": 16,
        "clip_embed_dim": 768,
        "ckpt_num_frames": 4,
        "rmsnorm_eps": 1e-6,
        "pool_ln_eps": 1e-5,
        "layer_scale": 1.0,
    },
    "bert": {
        "vocab_size": 30522,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "fusion_layer": 19,
    },
}
"""The released 1B model; `mlp_hidden` None means int(width * 48 / 11)."""

BERT = (
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "pad_token_id",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)
"""Keys of "bert" that are passed to `BertConfig`; the others describe layers that are not built."""


def complete(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """`config` with the defaults of the released model, merged one level deep for "vision" and "bert"."""
    sizes = dict(config or {})
    merged = {**FULL, **sizes}
    for tower in ("vision", "bert"):
        merged[tower] = {**FULL[tower], **sizes.get(tower, {})}
    return merged


class TextEncoder(nn.Module):
    """The first `fusion_layer` layers of BERT; later layers attend to the video, and the score does not use them."""

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        super().__init__()
        options = {key: cfg[key] for key in BERT if key in cfg}
        self.bert = BertModel(
            BertConfig(**{**options, "num_hidden_layers": cfg["fusion_layer"]}), add_pooling_layer=False
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L), (B, L) -> hidden states (B, L, hidden) after the last layer."""
        return self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


class InternVideo2(nn.Module):
    """Video and text towers with a shared space; both encoders return unit vectors.

    Args:
        config: Sizes that differ from the released 1B model (`FULL`): "vision", "bert", "embed_dim".
        gelu: "erf" (exact) or "tanh" (as in the fused GPU kernels of the released code).
    """

    def __init__(self, config: Mapping[str, Any] | None = None, gelu: str = "erf") -> None:
        super().__init__()
        self.config = complete(config)
        vision, bert = self.config["vision"], self.config["bert"]
        self.vision_encoder = VisionEncoder(vision, gelu)
        self.vision_proj = nn.Linear(vision["clip_embed_dim"], self.config["embed_dim"])
        self.text_proj = nn.Linear(bert["hidden_size"], self.config["embed_dim"])
        self._initialize()
        self.text_encoder = TextEncoder(bert)

    @property
    def image_size(self) -> int:
        """Height and width of the frames, pixels."""
        return self.config["vision"]["img_size"]

    def _initialize(self) -> None:
        """Initialize the weights for training from scratch; a loaded checkpoint overwrites them."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        tower = self.vision_encoder
        for table in (tower.cls_token, tower.pos_embed, tower.img_pos_embed):
            nn.init.trunc_normal_(table, std=0.02)

    def gradient_checkpointing(self, on: bool = True) -> None:
        """Recompute the video tower's activations in the backward pass."""
        self.vision_encoder.gradient_checkpointing = on

    def encode_video(self, pixel_values: Tensor) -> Tensor:
        """Pixels normalised with ImageNet's mean and std (B, T, 3, H, W) -> unit vectors (B, E), float32."""
        features = self.vision_proj(self.vision_encoder(pixel_values)).float()
        return features / features.norm(dim=-1, keepdim=True)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids (B, L), mask (B, L) with 1 for real tokens -> unit vectors (B, E) of the first token, float32."""
        features = self.text_proj(self.text_encoder(input_ids, attention_mask)[:, 0]).float()
        return features / features.norm(dim=-1, keepdim=True)


UNUSED = (
    "vision_encoder.clip_decoder.",
    "vision_encoder.final_clip_decoder.",
    "vision_encoder.clip_pos_embed",
    "vision_encoder.clip_img_pos_embed",
    "vision_encoder.clip_teacher.",
    "clip_teacher.",
    "text_encoder.bert.embeddings.position_ids",
    "text_encoder.bert.pooler.",
    "text_encoder.cls.",
    "itm_head.",
    "temp",
)
"""Keys of the released training class that the score does not read; fusion layers are recognised by their number."""


def is_unused(key: str, fusion_layer: int) -> bool:
    """Whether a key of the released checkpoint is not needed for the score."""
    layer = key.removeprefix("text_encoder.bert.encoder.layer.").split(".")[0]
    return key.startswith(UNUSED) or (layer.isdigit() and int(layer) >= fusion_layer)
