"""Folders of Wan pipelines in their published sizes without weights: model_index.json and the configurations alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TRANSFORMERS: dict[str, dict[str, Any]] = {
    "1.3b": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "5b": {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48},
    "a14b": {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
}
AUTOENCODER_5B = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}
TEXT = {
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_layers": 24,
    "num_heads": 64,
    "vocab_size": 256384,
    "feed_forward_proj": "gated-gelu",
}


def write(folder: Path, size: str) -> Path:
    """Write the configurations of Wan 2.1 T2V 1.3B ("1.3b"), 2.2 TI2V 5B ("5b") or 2.2 T2V A14B ("a14b")."""
    import torch
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
    from transformers import UMT5Config

    two = size == "a14b"
    with torch.device("meta"):
        transformer = WanTransformer3DModel(text_dim=4096, **TRANSFORMERS[size])
        vae = AutoencoderKLWan(**(AUTOENCODER_5B if size == "5b" else {}))
    for name in ("transformer", "transformer_2")[: 1 + two]:
        transformer.save_config(folder / name)
    vae.save_config(folder / "vae")
    UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0 if size == "5b" else 3.0
    ).save_config(folder / "scheduler")
    UMT5Config(**TEXT).save_pretrained(folder / "text_encoder")
    index: dict[str, Any] = {
        "_class_name": "WanPipeline",
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": ["diffusers", "WanTransformer3DModel"] if two else [None, None],
        "vae": ["diffusers", "AutoencoderKLWan"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "boundary_ratio": 0.875 if two else None,
        "expand_timesteps": size == "5b",
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
