"""A whole VideoCrafter2 checkpoint of random weights in its published layout, small enough for a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidedcd.models.checkpoints.architecture import Architecture
from guidedcd.models.checkpoints.lvdm_unet import FPS_KEYS, unet_arguments
from guidedcd.models.checkpoints.lvdm_vae_text import rename_text, rename_vae, text_arguments, vae_arguments
from guidedcd.models.checkpoints.unet import lvdm_state
from guidedcd.models.checkpoints.videocrafter2 import BUFFERS, PREFIXES
from guidedcd.models.guidance_inputs import GuidanceProjection
from guidedcd.testing.tiny_networks import LVDM_CONFIG, LVDM_UNET


def unet_state(config: dict[str, Any] = LVDM_UNET, *, student: int | None = None, seed: int = 0) -> dict[str, Tensor]:
    """A UNet's state dict under lvdm keys.

    Args:
        config: lvdm's constructor arguments.
        student: None for a teacher; else the number of energies whose inputs it has.
        seed: Of the weights.
    """
    from diffusers import UNet3DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet3DConditionModel(**unet_arguments(config))
        channels = config["model_channels"]
        if student is not None:
            unet.time_embedding.cond_proj = GuidanceProjection(channels, 256, 256 * student)
        for parameter in unet.parameters():  # layers that start at zero would hide mistakes
            parameter.data += 0.05 * torch.randn_like(parameter)
        width = 4 * channels
        shapes = ((width, channels), (width,), (width, width), (width,))
        state = lvdm_state(config, unet)
        state |= {key: 0.2 * torch.randn(shape) for key, shape in zip(FPS_KEYS, shapes, strict=True)}
    return state


def whole_state(config: dict[str, Any] = LVDM_CONFIG, seed: int = 0) -> dict[str, Tensor]:
    """Every key of a model.ckpt, schedule tables included."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    arch = Architecture.from_config(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKL(**vae_arguments(arch.ddconfig, arch.embed_dim, arch.scale)).state_dict()
        text = CLIPTextModel(CLIPTextConfig(**text_arguments(arch.text, arch.layer))).state_dict()
        text = {key.removeprefix("text_model."): value for key, value in text.items()}
        used, unused = rename_text(arch.text, arch.layer)
        parts = {
            "unet": unet_state(arch.unet, seed=seed),
            "vae": {key: vae[name] for key, name in rename_vae(arch.ddconfig).items()},
            "text": {
                key: text[names] if isinstance(names, str) else torch.cat([text[name] for name in names])
                for key, names in used.items()
            }
            | {key: torch.randn(2) for key in unused},
        }
    for key in [key for key in parts["vae"] if ".attn_1." in key and "norm" not in key and key.endswith("weight")]:
        parts["vae"][key] = parts["vae"][key][..., None, None]
    state = {PREFIXES[part] + key: value for part, values in parts.items() for key, value in values.items()}
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    state |= {key: torch.zeros(1000) for key in BUFFERS}
    return {**state, "alphas_cumprod": torch.cumprod(1 - betas, 0).float()}


def write(folder: Path, *, wrapped: bool = True) -> tuple[Path, Path]:
    """Write model.ckpt and config.json; their paths."""
    state = {key: value.contiguous() for key, value in whole_state().items()}
    torch.save({"state_dict": state} if wrapped else state, folder / "model.ckpt")
    (folder / "config.json").write_text(json.dumps(LVDM_CONFIG))
    return folder / "model.ckpt", folder / "config.json"
