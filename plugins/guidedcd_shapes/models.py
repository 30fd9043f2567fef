"""The embedded models: small instances of stock classes of diffusers, transformers and open_clip."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from guidedcd.diffusion.schedule import float32_linspace
from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError
from guidedcd_shapes import world
from guidedcd_shapes.vocabulary import BEGIN, END, PAD, VOCABULARY

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

WEIGHTS = Path(__file__).parent / "weights"

CONTEXT = {"text": 128, "clip": 77, "hps": 77, "internv2": 40}
"""Context length of each text tower in tokens, <bos> and <eos> included."""

WIDTH = 96
"""Width of the prompt embeddings."""

LATENT = (4, world.FRAMES, 12, 12)
"""Shape of a video's latents (C, F, h, w)."""

_CLIP = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": world.SIZE, "patch_size": 6, "width": 128, "layers": 4, "head_width": 32},
    "text_cfg": {
        "context_length": CONTEXT["clip"],
        "vocab_size": len(VOCABULARY),
        "width": 128,
        "heads": 4,
        "layers": 3,
    },
}


CONFIGS: dict[str, dict[str, Any]] = {
    "vae": {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": LATENT[0],
        "block_out_channels": (24, 32, 48),
        "layers_per_block": 1,
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "norm_num_groups": 8,
        "sample_size": world.SIZE,
        "mid_block_add_attention": False,
        "scaling_factor": 1.0,
    },
    "text": {
        "vocab_size": len(VOCABULARY),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT["text"],
        "projection_dim": WIDTH,
        "hidden_act": "gelu",
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "pad_token_id": PAD,
        "attention_dropout": 0.0,
    },
    "unet": {
        "sample_size": LATENT[-1],
        "in_channels": LATENT[0],
        "out_channels": LATENT[0],
        "block_out_channels": (32, 64, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
        "norm_num_groups": 8,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 16,  # the width of a head: 2 and 4 heads
    },
    "dit": {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 5,
        "attention_head_dim": 32,
        "in_channels": LATENT[0],
        "out_channels": LATENT[0],
        "text_dim": WIDTH,
        "freq_dim": 256,
        "ffn_dim": 512,
        "num_layers": 7,
        "rope_max_seq_len": 32,
    },
    "clip": _CLIP,
    "hps": _CLIP,
    "internv2": {
        "embed_dim": 128,
        "max_txt_l": CONTEXT["internv2"],
        "vision": {
            "img_size": world.SIZE,
            "patch_size": 8,
            "embed_dim": 128,
            "depth": 4,
            "num_heads": 4,
            "mlp_hidden": 384,
            "attn_pool_num_heads": 4,
            "clip_embed_dim": 128,
            "ckpt_num_frames": 4,
        },
        "bert": {
            "vocab_size": len(VOCABULARY),
            "hidden_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 384,
            "max_position_embeddings": CONTEXT["internv2"],
            "type_vocab_size": 2,
            "fusion_layer": 3,
        },
    },
}


SCHEDULER: dict[str, Any] = {  # with the usual beta_end of 0.02, four steps are as good as fifty on such small clips
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.045,
    "beta_schedule": "linear",
    "prediction_type": "v_prediction",
}


FLOW_SCHEDULER: dict[str, Any] = {"num_train_timesteps": 1000, "shift": 3.0}
"""Arguments of `FlowMatchEulerDiscreteScheduler` for the video transformer."""


NORMALISE = {  # mean and standard deviation of the pixels, as for the released models
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "internv2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def meta(folder: Path = WEIGHTS) -> dict[str, Any]:
    """The recipe's meta.json: configurations, vocabulary and measured quality; {} if there is none."""
    path = folder / "meta.json"
    return read_json(path) if path.exists() else {}


@cache
def variety(folder: Path = WEIGHTS) -> world.Variety:
    """The variation of the videos that the weights in `folder` were trained on."""
    return world.Variety(**meta(folder).get("variety", {}))


def build(name: str, config: Mapping[str, Any] | None = None) -> nn.Module:
    """A model by its name in CONFIGS, with random weights from torch's global generator.

    Args:
        name: A key of CONFIGS.
        config: Sizes in place of those in CONFIGS.
    """
    config = config or CONFIGS[name]
    if name == "vae":
        from diffusers import AutoencoderKL as Class
    elif name == "unet":
        from diffusers import UNet3DConditionModel as Class
    elif name == "dit":
        from diffusers import WanTransformer3DModel as Class
    elif name == "text":
        from transformers import CLIPTextConfig, CLIPTextModel

        return CLIPTextModel(CLIPTextConfig(**config))
    elif name == "internv2":
        from guidedcd_internv2.model import InternVideo2

        return InternVideo2(config)
    else:
        from open_clip.model import CLIP as Class
    return Class(**config)


def alphas_cumprod(folder: Path | None = None) -> Tensor:
    """Cumulative alphas (1000,), float32, of the teacher in `folder`, or those of the recipe."""
    config: dict[str, Any] = SCHEDULER if folder is None else meta(folder).get("scheduler", SCHEDULER)
    betas = float32_linspace(config["beta_start"], config["beta_end"], config["num_train_timesteps"])
    return (1 - betas).cumprod(0)


def save(name: str, model: nn.Module, folder: Path) -> None:
    """Write float16 weights to `folder`/`name`.safetensors."""
    from safetensors.torch import save_file

    state = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    save_file({k: v.detach().half().contiguous().cpu() for k, v in state.items()}, folder / f"{name}.safetensors")


def load(name: str, folder: Path = WEIGHTS, device: torch.device | str = "cpu") -> nn.Module:
    """A trained model in float32, frozen, in eval mode, in the sizes of `folder`'s meta.json."""
    from safetensors.torch import load_file

    model = build(name, meta(folder).get(name))
    prefix = "text_model."  # of every key, before and in transformers 5.5
    added = prefix if any(k.startswith(prefix) for k in model.state_dict()) else ""
    state = load_file(folder / f"{name}.safetensors")
    missing, unexpected = model.load_state_dict(
        {added + k.removeprefix(prefix): v.float() for k, v in state.items()}, strict=False
    )
    buffers = {k for k, v in model.state_dict().items() if not v.is_floating_point()}
    if set(missing) - buffers or unexpected:
        raise ValueError(f"{folder / name}.safetensors does not fit: missing {missing}, unexpected {unexpected}")
    return model.to(device).eval().requires_grad_(False)


def encode(vae: AutoencoderKL, video: Tensor, chunk: int = 4096) -> Tensor:
    """Latents (B, C, F, h, w), float32, of videos (B, F, 3, H, W) in [0, 1]; posterior mode."""
    dtype = next(vae.parameters()).dtype
    pixels = (video.flatten(0, 1) * 2 - 1).to(dtype)
    z = torch.cat([vae.encode(images).latent_dist.mean.float() for images in pixels.split(chunk)])
    return z.unflatten(0, video.shape[:2]).transpose(1, 2).contiguous()


def decode(vae: AutoencoderKL, z: Tensor, chunk: int = 4096) -> Tensor:
    """Videos (B, F, 3, H, W) in [0, 1], float32, of latents (B, C, F, h, w)."""
    flat = z.transpose(1, 2).flatten(0, 1).to(next(vae.parameters()).dtype)
    pixels = torch.cat([vae.decode(latents).sample.float() for latents in flat.split(chunk)])
    return (pixels / 2 + 0.5).clamp(0, 1).unflatten(0, (z.shape[0], z.shape[2]))


def embedded(name: str) -> tuple[Path, dict[str, Any]]:
    """Weights and entry in meta.json of an embedded model.

    Raises:
        GuidedCDError: This installation has no such file.
    """
    folder = WEIGHTS
    path, meta = folder / f"{name}.safetensors", folder / "meta.json"
    if not path.is_file() or not meta.is_file():
        raise GuidedCDError(
            f"{name}: the embedded model {path} is missing from this installation; reinstall guidedcd, or use "
            f"{name}:auto for the published one."
        )
    return path, json.loads(meta.read_text(encoding="utf-8"))[name]
