"""Teachers in diffusers' folder layout with a `UNet3DConditionModel`: ModelScope and its relatives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from guidedcd.data.geometry import Geometry
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.errors import GuidedCDError
from guidedcd.models.checkpoints import hub
from guidedcd.models.teachers.latent import LatentTeacher
from guidedcd.models.teachers.protocol import Cond

if TYPE_CHECKING:
    from transformers import CLIPTextModel


class ClipText(nn.Module):
    """A transformers CLIP text model and its tokenizer: captions to the last hidden state, padded to full length."""

    model: CLIPTextModel

    def __init__(self, model: CLIPTextModel, tokenizer: Any) -> None:
        """Take a `CLIPTextModel` and a `CLIPTokenizer`."""
        super().__init__()
        self.model, self.tokenizer = model, tokenizer

    def forward(self, captions: Sequence[str]) -> Cond:
        """{"prompt_embeds": (B, L, D)}; padding is attended to, as in the pipelines of this family."""
        length = self.model.config.max_position_embeddings
        tokens = self.tokenizer(
            list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        device = next(self.model.parameters()).device
        return {"prompt_embeds": self.model(tokens.input_ids.to(device)).last_hidden_state}


def load_unet3d(path: str | Path, *, frames: int, height: int, width: int, fps: float) -> LatentTeacher:
    """Read a pipeline folder (unet/, vae/, text_encoder/, tokenizer/, scheduler/) or a hub id.

    Args:
        path: Folder or hub id with `UNet3DConditionModel` weights in safetensors.
        frames: Frames per video.
        height: Pixels, a multiple of the VAE's compression.
        width: Pixels, likewise.
        fps: Frames per second of the videos it makes; only written into files, this family has no such input.

    Raises:
        GuidedCDError: The folder cannot be read, or the size does not fit the VAE.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    if Path(path).expanduser().is_file():
        raise GuidedCDError(
            f"unet3d reads a folder in diffusers' layout, but {path} is a file: VideoCrafter2's model.ckpt is read by "
            "--teacher videocrafter2:FILE"
        )
    absent = hub.missing(path)
    try:
        unet = UNet3DConditionModel.from_pretrained(path, subfolder="unet", use_safetensors=True)
        vae = AutoencoderKL.from_pretrained(path, subfolder="vae", use_safetensors=True)
        encoder = CLIPTextModel.from_pretrained(path, subfolder="text_encoder", use_safetensors=True)
        tokenizer = CLIPTokenizer.from_pretrained(path, subfolder="tokenizer")
        schedule = NoiseSchedule.from_scheduler(DDIMScheduler.from_pretrained(path, subfolder="scheduler"))
    except (OSError, ValueError) as error:
        reason = absent or str(error).strip().splitlines()[0]
        raise GuidedCDError(f"cannot read a text-to-video pipeline with a 3D UNet from '{path}': {reason}") from error
    compression = 2 ** (len(vae.config.block_out_channels) - 1)
    if height % compression or width % compression:
        raise GuidedCDError(f"height and width must be multiples of {compression}: {height}x{width}.")
    geometry = Geometry(
        frames=frames,
        height=height,
        width=width,
        fps=fps,
        channels=unet.config.in_channels,
        compression=compression,
    )
    return LatentTeacher(
        network=unet.to(torch.float32),
        vae=vae.to(torch.float32),
        text=ClipText(encoder.to(torch.float32), tokenizer),
        schedule=schedule,
        geometry=geometry,
    )
