"""The teachers without weights: networks on the meta device, for planning before anything is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from guidedcd.data.geometry import Geometry
from guidedcd.devices import dtype_of
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.models.checkpoints import hub
from guidedcd.models.checkpoints.architecture import Architecture
from guidedcd.models.checkpoints.loading import skeleton
from guidedcd.models.checkpoints.lvdm_unet import unet_arguments
from guidedcd.models.checkpoints.lvdm_vae_text import text_arguments, vae_arguments
from guidedcd.models.teachers.animatediff import AnimateDiffTeacher
from guidedcd.models.teachers.latent import LatentTeacher
from guidedcd.models.teachers.protocol import Cond
from guidedcd_unets import AnimateDiffConfig, UNet3DConfig, VideoCrafter2Config

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet3DConditionModel, UNetMotionModel
    from transformers import CLIPTextModel

IMAGE_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
"""Stable Diffusion's autoencoder, which all of these families share."""
TEXT_L: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
TEXT_H: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
}
MODELSCOPE: dict[str, Any] = {"cross_attention_dim": 1024, "attention_head_dim": 64}
"""Arguments of ModelScope's 3D UNet that differ from the class's defaults."""
MOTION: dict[str, Any] = {"cross_attention_dim": 768, "num_attention_heads": 8, "motion_max_seq_length": 32}
"""Arguments of Stable Diffusion 1.5 with the published motion modules that differ from the class's defaults."""


class Text(nn.Module):
    """A CLIP text model that encodes arbitrary tokens."""

    model: CLIPTextModel

    def __init__(self, model: CLIPTextModel) -> None:
        """Wrap a `CLIPTextModel`."""
        super().__init__()
        self.model = model

    def forward(self, captions: Sequence[str]) -> Cond:
        """{"prompt_embeds": (B, L, D)}."""
        config, like = self.model.config, next(self.model.parameters())
        ids = torch.zeros(len(captions), config.max_position_embeddings, dtype=torch.long, device=like.device)
        return {"prompt_embeds": self.model(input_ids=ids).last_hidden_state}


def videocrafter2(config: VideoCrafter2Config) -> LatentTeacher:
    """VideoCrafter2 of the published architecture, or of the one in `config.arch`; the checkpoint is not opened."""
    from diffusers import AutoencoderKL, UNet3DConditionModel
    from transformers import CLIPTextConfig

    arch = Architecture.read(config.arch)
    arch.check_size(config.frames, config.height, config.width)
    unet = skeleton(lambda: UNet3DConditionModel(**unet_arguments(arch.unet)))
    vae = skeleton(lambda: AutoencoderKL(**vae_arguments(arch.ddconfig, arch.embed_dim, arch.scale)))
    text = _text(CLIPTextConfig(**text_arguments(arch.text, arch.layer)))
    return _teacher(LatentTeacher, config, unet, vae, text, channels=arch.embed_dim, compression=arch.compression)


def unet3d(config: UNet3DConfig) -> LatentTeacher:
    """A folder's architecture; ModelScope's if neither the folder nor the hub can be read."""
    from diffusers import AutoencoderKL, UNet3DConditionModel

    unet = _network(UNet3DConditionModel, config.path, "unet", MODELSCOPE)
    vae = _network(AutoencoderKL, config.path, "vae", IMAGE_VAE)
    return _teacher(LatentTeacher, config, unet, vae, _text_of(config.path, TEXT_H))


def animatediff(config: AnimateDiffConfig) -> LatentTeacher:
    """A motion UNet's architecture; Stable Diffusion 1.5 with the published adapter if it cannot be read."""
    from diffusers import AutoencoderKL, UNetMotionModel

    published = _config(UNetMotionModel, config.path, "unet")
    whole = published is not None and published.get("_class_name") == "UNetMotionModel"
    unet = _network(UNetMotionModel, config.path if whole else "", "unet", MOTION)
    vae = _network(AutoencoderKL, config.path, "vae", IMAGE_VAE)
    return _teacher(AnimateDiffTeacher, config, unet, vae, _text_of(config.path, TEXT_L))


def _teacher(
    kind: type[LatentTeacher],
    config: Any,
    network: UNet3DConditionModel | UNetMotionModel,
    vae: AutoencoderKL,
    text: CLIPTextModel,
    channels: int | None = None,
    compression: int | None = None,
) -> LatentTeacher:
    dtype = dtype_of(config.dtype)
    return kind(
        network=network.to(dtype),
        vae=vae.to(dtype),
        text=Text(text.to(dtype)),
        schedule=NoiseSchedule.scaled_linear(),
        geometry=Geometry(
            frames=config.frames,
            height=config.height,
            width=config.width,
            fps=config.fps,
            channels=channels or network.config.in_channels,
            compression=compression or 2 ** (len(vae.config.block_out_channels) - 1),
        ),
    )


def _config(kind: Any, path: str | Path, subfolder: str) -> dict[str, Any] | None:
    """The published configuration of a subfolder, if it is on this machine or can be downloaded."""
    if not str(path) or hub.missing(path):
        return None
    try:
        return kind.load_config(path, subfolder=subfolder)
    except (OSError, ValueError):
        return None


def _network(kind: Any, path: str | Path, subfolder: str, defaults: dict[str, Any]) -> nn.Module:
    published = _config(kind, path, subfolder)
    return skeleton(lambda: kind(**defaults) if published is None else kind.from_config(published))


def _text_of(path: str | Path, defaults: dict[str, Any]) -> nn.Module:
    from transformers import CLIPTextConfig

    config = None
    if str(path) and not hub.missing(path):
        try:
            config = CLIPTextConfig.from_pretrained(path, subfolder="text_encoder")
        except (OSError, ValueError):
            config = None
    return _text(config or CLIPTextConfig(**defaults))


def _text(config: Any) -> nn.Module:
    from transformers import CLIPTextModel

    return skeleton(lambda: CLIPTextModel(config))
