"""Teachers with video transformers, from folders in diffusers' layout: Wan, CogVideoX and LTX-Video."""

from __future__ import annotations

import attrs
from attrs.validators import ge, in_, optional

from guidedcd.devices import DTYPES
from guidedcd.plugins.decode_policies import VideoTeacherConfig
from guidedcd.plugins.hookspecs import hookimpl


@attrs.frozen(kw_only=True)
class TransformerConfig(VideoTeacherConfig):
    """Options of all these teachers."""

    frames: int | None = attrs.field(default=None, validator=optional(ge(1)))
    """Frames per video, 1 more than a multiple of the autoencoder's frames per latent frame; none is the model's
    usual number."""
    height: int | None = attrs.field(default=None, validator=optional(ge(1)))
    """Height in pixels, a multiple of the autoencoder's compression times the patch size; none is the model's usual
    height."""
    width: int | None = attrs.field(default=None, validator=optional(ge(1)))
    """Width in pixels, a multiple of the same number; none is the model's usual width."""
    dtype: str = attrs.field(default="float32", validator=in_(DTYPES))
    """Data type of the weights; a student keeps float32 masters only if its teacher has float32 weights."""


@attrs.frozen(kw_only=True)
class WanConfig(TransformerConfig):
    """Options of the teacher `wan`."""

    path: str = attrs.field(default="Wan-AI/Wan2.1-T2V-1.3B-Diffusers", metadata={"positional": True})
    """Folder or hub id with a `WanPipeline`: Wan 2.1 T2V 1.3B or 14B, 2.2 TI2V 5B, 2.2 T2V A14B."""
    fps: float | None = attrs.field(default=None, validator=optional(ge(1)))
    """Frames per second of the sampled videos; the network has no such input. None is the model's usual rate."""
    expert: str = attrs.field(default="high", validator=in_(("high", "low")))
    """Which expert of Wan 2.2 A14B a student is a copy of: that of high noise (transformer), or of low noise
    (transformer_2). The teacher's own other expert predicts at the other noise levels. A model with one transformer has
    no choice but high."""
    text_length: int = attrs.field(default=512, validator=ge(1))
    """Tokens of a caption; longer ones are cut."""


@attrs.frozen(kw_only=True)
class CogVideoXConfig(TransformerConfig):
    """Options of the teacher `cogvideox`."""

    path: str = attrs.field(default="THUDM/CogVideoX-2b", metadata={"positional": True})
    """Folder or hub id with a `CogVideoXPipeline`."""
    fps: float = attrs.field(default=8.0, validator=ge(1))
    """Frames per second of the sampled videos; the network has no such input."""


@attrs.frozen(kw_only=True)
class LTXConfig(TransformerConfig):
    """Options of the teacher `ltx`."""

    path: str = attrs.field(default="Lightricks/LTX-Video", metadata={"positional": True})
    """Folder or hub id with an `LTXPipeline`, such as LTX-Video 0.9."""
    fps: float = attrs.field(default=25.0, validator=ge(1))
    """Frames per second, an input of the network."""
    text_length: int = attrs.field(default=128, validator=ge(1))
    """Tokens of a caption; longer ones are cut."""


@hookimpl
def register_teachers(register):
    """Offer `wan`, `cogvideox` and `ltx`."""
    register(
        "wan",
        "guidedcd_dits.wan:wan",
        config=WanConfig,
        summary="Wan 2.1 T2V, 2.2 TI2V 5B and 2.2 T2V A14B from a folder in diffusers' layout",
    )
    register(
        "cogvideox",
        "guidedcd_dits.cogvideox:cogvideox",
        config=CogVideoXConfig,
        summary="CogVideoX from a folder in diffusers' layout",
    )
    register(
        "ltx",
        "guidedcd_dits.ltx:ltx",
        config=LTXConfig,
        summary="LTX-Video 0.9 from a folder in diffusers' layout",
    )
