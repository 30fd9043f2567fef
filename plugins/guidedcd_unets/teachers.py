"""Construction of the teachers from their options."""

from __future__ import annotations

from guidedcd.devices import dtype_of
from guidedcd.models.checkpoints.hub import Published, find
from guidedcd.models.checkpoints.open_clip_tokens import START, ClipTokens
from guidedcd.models.teachers.animatediff import load_animatediff
from guidedcd.models.teachers.latent import LatentTeacher
from guidedcd.models.teachers.unet3d import ClipText, load_unet3d
from guidedcd.models.teachers.videocrafter2 import load_videocrafter2
from guidedcd_unets import AnimateDiffConfig, UNet3DConfig, VideoCrafter2Config, outlines

VIDEOCRAFTER2 = Published(repo="VideoCrafter/VideoCrafter2", files=("model.ckpt",), size="7.4 GB")


def videocrafter2(config: VideoCrafter2Config, *, weights: bool = True) -> LatentTeacher:
    """VideoCrafter2 from its published file; without weights its shapes alone, on the meta device."""
    if not weights:
        return outlines.videocrafter2(config)
    path = find(config.path, VIDEOCRAFTER2, "videocrafter2") if config.path == "auto" else config.path
    return load_videocrafter2(
        path,
        arch=config.arch,
        fps=config.fps,
        frames=config.frames,
        height=config.height,
        width=config.width,
        dtype=dtype_of(config.dtype),
    )


def unet3d(config: UNet3DConfig, *, weights: bool = True) -> LatentTeacher:
    """Any folder of the 3D UNet family; without weights its shapes alone."""
    if not weights:
        return outlines.unet3d(config)
    teacher = load_unet3d(config.path, frames=config.frames, height=config.height, width=config.width, fps=config.fps)
    text = teacher.text
    assert isinstance(text, ClipText)
    if text.tokenizer.bos_token == START:  # a folder that `guidedcd convert` wrote: same text, same tokens
        teacher.text = ClipTokens(text.model)
    return teacher.to("cpu", dtype_of(config.dtype))


def animatediff(config: AnimateDiffConfig, *, weights: bool = True) -> LatentTeacher:
    """AnimateDiff from a pipeline folder, or from an image model and an adapter; without weights its shapes alone."""
    if not weights:
        return outlines.animatediff(config)
    return load_animatediff(
        config.path,
        adapter=config.adapter,
        frames=config.frames,
        height=config.height,
        width=config.width,
        fps=config.fps,
        betas=config.betas,
        dtype=dtype_of(config.dtype),
    )
