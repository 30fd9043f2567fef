"""Small networks and sizes of networks for tests and benchmarks, which compute in milliseconds on a CPU.

`tiny_unet` and `tiny_vae` draw their weights from torch's global generator. The constants are sizes in the form that
the loader of each published checkpoint takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet3DConditionModel

IMAGE_TEXT_SIZES: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 28, "layers": 2, "width": 32, "head_width": 16, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
"""Sizes of open_clip's `CLIP`, for `guidedcd.rewards.image_text.build_clip`."""

VIDEO_TEXT_SIZES: dict[str, Any] = {
    "embed_dim": 16,
    "max_txt_l": 12,
    "vision": {
        "img_size": 28,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "attn_pool_num_heads": 2,
        "clip_embed_dim": 24,
        "ckpt_num_frames": 4,
    },
    "bert": {
        "vocab_size": 30,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 16,
        "fusion_layer": 2,
    },
}
"""Sizes of InternVideo2 that differ from the released model."""

TRANSFORMERS_CLIP_SIZES: dict[str, Any] = {
    "projection_dim": 16,
    "text_config": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "hidden_act": "gelu",
    },
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 14,
        "image_size": 28,
        "hidden_act": "gelu",
    },
}
"""Sizes of transformers' `CLIPModel`, for its `CLIPConfig`."""

LVDM_UNET: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "attention_resolutions": [1],
    "num_res_blocks": 1,
    "channel_mult": [1, 2],
    "num_head_channels": 8,
    "context_dim": 16,
    "use_linear": True,
    "addition_attention": True,
    "fps_cond": True,
}
"""Arguments of VideoCrafter2's UNet under the names of its published config."""

LVDM_CONFIG: dict[str, Any] = {
    "model": {
        "params": {
            "linear_start": 0.00085,
            "linear_end": 0.012,
            "timesteps": 1000,
            "scale_factor": 0.18215,
            "unet_config": {"params": LVDM_UNET},
            "first_stage_config": {
                "params": {"embed_dim": 4, "ddconfig": {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1}}
            },
            "cond_stage_config": {"params": {"layer": "penultimate"}},
        }
    },
    "open_clip_arch": {"text_cfg": {"vocab_size": 600, "context_length": 12, "width": 16, "heads": 2, "layers": 3}},
}
"""A whole VideoCrafter2 in the structure of its published config, for `Architecture.from_config`."""


def tiny_unet(**options: Any) -> UNet3DConditionModel:
    """A UNet with temporal attention and two resolutions; `options` replace its arguments.

    It has more channels than groups everywhere: with one channel per group, normalisation would remove the time
    embedding.
    """
    from diffusers import UNet3DConditionModel

    arguments: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
        "attention_head_dim": 8,
    }
    return UNet3DConditionModel(**{**arguments, **options})


def tiny_vae(**options: Any) -> AutoencoderKL:
    """An autoencoder of single frames that halves height and width; `options` replace its arguments."""
    from diffusers import AutoencoderKL

    arguments: dict[str, Any] = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
        "latent_channels": 4,
    }
    return AutoencoderKL(**{**arguments, **options})
