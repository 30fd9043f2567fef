"""AnimateDiff: an image UNet with motion modules between its layers (`UNetMotionModel`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidedcd.data.geometry import Geometry
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.errors import GuidedCDError
from guidedcd.models.checkpoints import hub
from guidedcd.models.teachers.latent import LatentTeacher
from guidedcd.models.teachers.protocol import Cond
from guidedcd.models.teachers.unet3d import ClipText


class AnimateDiffTeacher(LatentTeacher):
    """A `LatentTeacher` whose network takes the text once per frame, which `UNet3DConditionModel` repeats itself."""

    def prompt(self, cond: Cond, frames: int) -> Tensor:
        """The prompt embeddings (B * F, L, D), the frames of a video together."""
        return cond["prompt_embeds"].repeat_interleave(frames, dim=0)


def load_animatediff(
    path: str | Path,
    *,
    adapter: str | Path | None = None,
    frames: int = 16,
    height: int = 512,
    width: int = 512,
    fps: int = 8,
    betas: str = "auto",
    dtype: torch.dtype = torch.float32,
) -> AnimateDiffTeacher:
    """Read an AnimateDiff pipeline folder, or a Stable Diffusion folder together with a motion adapter.

    Args:
        path: Folder or hub id with unet/, vae/, text_encoder/, tokenizer/ and scheduler/.
        adapter: Folder or hub id of a `MotionAdapter`; None takes motion_adapter/ or the motion UNet of `path`.
        frames: Frames per video, at most the number of the adapter's positions.
        height: Pixels, a multiple of the VAE's compression.
        width: Pixels, likewise.
        fps: Frames per second of the videos it makes; the network has no such input.
        betas: The noise schedule: "linear" as for the published adapters, "folder" for the folder's scheduler, or
            "auto": the folder's for an AnimateDiff pipeline, linear for a separate adapter.
        dtype: Of all weights.

    Raises:
        GuidedCDError: A file cannot be read, or the size is not supported.
    """
    if not str(path):
        raise GuidedCDError("animatediff needs a model: --teacher animatediff:FOLDER, a folder or hub id")
    unet, vae, encoder, tokenizer, scheduler = _read(path, adapter, betas, dtype)
    longest = unet.config.motion_max_seq_length
    if not 1 <= frames <= longest:
        raise GuidedCDError(f"frames must be 1 to {longest}, the positions of this motion adapter: {frames}")
    compression = 2 ** (len(vae.config.block_out_channels) - 1)
    if height < 1 or width < 1 or height % compression or width % compression:
        raise GuidedCDError(f"height and width must be multiples of {compression}: {height}x{width}")
    return AnimateDiffTeacher(
        network=unet.to(dtype),
        vae=vae,
        text=ClipText(encoder, tokenizer),
        schedule=NoiseSchedule.from_scheduler(scheduler),
        geometry=Geometry(
            frames=frames,
            height=height,
            width=width,
            fps=fps,
            channels=unet.config.in_channels,
            compression=compression,
        ),
    )


def _read(
    path: str | Path, adapter: str | Path | None, betas: str, dtype: torch.dtype
) -> tuple[Any, Any, Any, Any, Any]:
    """(motion UNet, VAE, text encoder, tokenizer, scheduler) of `load_animatediff`'s folders.

    Raises:
        GuidedCDError: A file cannot be read.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, MotionAdapter, UNet2DConditionModel, UNetMotionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    absent = hub.missing(path) or (hub.missing(adapter) if adapter else "")
    options = {"use_safetensors": True, "torch_dtype": dtype}
    try:
        separate = adapter is not None
        if not separate and Path(path, "motion_adapter").is_dir():
            motion = MotionAdapter.from_pretrained(path, subfolder="motion_adapter", **options)
        else:
            motion = MotionAdapter.from_pretrained(adapter, **options) if separate else None
        whole = UNetMotionModel.load_config(path, subfolder="unet").get("_class_name") == "UNetMotionModel"
        if motion is None and not whole:
            raise GuidedCDError(
                f"{path} has no motion adapter; give one with --teacher.animatediff.adapter, "
                "for example guoyww/animatediff-motion-adapter-v1-5-2"
            )
        if whole:
            unet = UNetMotionModel.from_pretrained(path, subfolder="unet", **options)
            if motion is not None:
                unet.load_motion_modules(motion)
        else:
            flat = UNet2DConditionModel.from_pretrained(path, subfolder="unet", **options)
            unet = UNetMotionModel.from_unet2d(flat, motion)
        vae = AutoencoderKL.from_pretrained(path, subfolder="vae", **options)
        encoder = CLIPTextModel.from_pretrained(path, subfolder="text_encoder", **options)
        tokenizer = CLIPTokenizer.from_pretrained(path, subfolder="tokenizer")
        changed = {"beta_schedule": "linear"} if betas == "linear" or (betas == "auto" and separate) else {}
        scheduler = DDIMScheduler.from_pretrained(path, subfolder="scheduler", **changed)
    except (OSError, ValueError) as error:
        reason = absent or str(error).strip().splitlines()[0]
        raise GuidedCDError(
            f"cannot read AnimateDiff from {path}{f' with the adapter {adapter}' if adapter else ''}: {reason}"
        ) from error
    return unet, vae, encoder, tokenizer, scheduler
