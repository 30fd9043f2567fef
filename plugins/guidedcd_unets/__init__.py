"""Teachers with UNets: VideoCrafter2 as published, ModelScope and its relatives, AnimateDiff."""

from __future__ import annotations

import attrs
from attrs.validators import ge, in_

from guidedcd.devices import DTYPES
from guidedcd.plugins.configs import TeacherConfig
from guidedcd.plugins.hookspecs import hookimpl


@attrs.frozen(kw_only=True)
class UNetConfig(TeacherConfig):
    """Options of all these teachers."""

    frames: int = attrs.field(default=16, validator=ge(1))
    """Frames per video."""
    dtype: str = attrs.field(default="float32", validator=in_(DTYPES))
    """Of the weights; a student keeps float32 masters only if its teacher has them."""


@attrs.frozen(kw_only=True)
class VideoCrafter2Config(UNetConfig):
    """Options of the teacher `videocrafter2`."""

    path: str = attrs.field(default="auto", metadata={"positional": True})
    """model.ckpt as published, or its tensors as safetensors; auto looks in the cache folder, then on the hub."""
    arch: str | None = None
    """JSON or YAML with the architecture, for files of another size; none is the published one."""
    fps: int = attrs.field(default=8, validator=ge(1))
    """Frames per second, an input of the network."""
    height: int = attrs.field(default=320, validator=ge(1))
    """Pixels, a multiple of 64 for the published network."""
    width: int = attrs.field(default=512, validator=ge(1))
    """Pixels, likewise."""


@attrs.frozen(kw_only=True)
class UNet3DConfig(UNetConfig):
    """Options of the teacher `unet3d`."""

    path: str = attrs.field(default="ali-vilab/text-to-video-ms-1.7b", metadata={"positional": True})
    """Folder or hub id in diffusers' layout with a `UNet3DConditionModel`."""
    fps: int = attrs.field(default=8, validator=ge(1))
    """Frames per second of the videos it makes; the network has no such input."""
    height: int = attrs.field(default=256, validator=ge(1))
    """Pixels, a multiple of 8."""
    width: int = attrs.field(default=256, validator=ge(1))
    """Pixels, likewise."""


@attrs.frozen(kw_only=True)
class AnimateDiffConfig(UNetConfig):
    """Options of the teacher `animatediff`."""

    path: str = attrs.field(default="", metadata={"positional": True})
    """Folder or hub id of a Stable Diffusion 1.5 model, or of a whole AnimateDiff pipeline."""
    adapter: str | None = None
    """Folder or hub id of the motion adapter, e.g. guoyww/animatediff-motion-adapter-v1-5-2; none: `path` has it."""
    betas: str = attrs.field(default="auto", validator=in_(("auto", "linear", "folder")))
    """Noise levels: linear as for published adapters, those of the folder, or auto: linear for a separate adapter."""
    fps: int = attrs.field(default=8, validator=ge(1))
    """Frames per second of the videos it makes; the network has no such input."""
    height: int = attrs.field(default=512, validator=ge(1))
    """Pixels, a multiple of 8."""
    width: int = attrs.field(default=512, validator=ge(1))
    """Pixels, likewise."""


@hookimpl
def register_teachers(register):
    """Offer `videocrafter2`, `unet3d` and `animatediff`."""
    register(
        "videocrafter2",
        "guidedcd_unets.teachers:videocrafter2",
        config=VideoCrafter2Config,
        summary="VideoCrafter2 from its published model.ckpt",
    )
    register(
        "unet3d",
        "guidedcd_unets.teachers:unet3d",
        config=UNet3DConfig,
        summary="a diffusers folder with a 3D UNet: ModelScope, zeroscope, or what `guidedcd convert` wrote",
    )
    register(
        "animatediff",
        "guidedcd_unets.teachers:animatediff",
        config=AnimateDiffConfig,
        summary="a Stable Diffusion folder with an AnimateDiff motion adapter",
    )
