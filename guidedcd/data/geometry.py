"""The shape of videos and latents."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from guidedcd.docstrings import documented
from guidedcd.errors import GuidedCDError


@documented
@attrs.frozen(kw_only=True)
class Geometry:
    """The shape of a teacher's videos, in pixels, and of their latents."""

    frames: int
    """Frames per video."""
    height: int
    """Height in pixels."""
    width: int
    """Width in pixels."""
    fps: float
    """Frames per second."""
    channels: int = 4
    """Latent channels."""
    compression: int = 8
    """Pixels per latent along height and width."""
    temporal_compression: int = 1
    """Frames per latent frame; the first latent frame is of the first frame alone, as causal autoencoders have it."""
    latent_multiple: int = 1
    """The number of latent frames is a multiple of this; padding precedes the frames of the video."""

    def __attrs_post_init__(self) -> None:
        factor = self.temporal_compression
        if (self.frames - 1) % factor:
            fewer = (self.frames - 1) // factor * factor + 1
            raise GuidedCDError(
                f"frames must be 1 more than a multiple of {factor}, the frames per latent frame of this autoencoder: "
                f"{self.frames} is not. Use {fewer} or {fewer + factor}."
            )

    @property
    def latent_frames(self) -> int:
        """Frames of the latents: (frames - 1) / temporal_compression + 1, and padding."""
        return (self.frames - 1) // self.temporal_compression + 1 + self.latent_padding

    @property
    def latent_padding(self) -> int:
        """Latent frames that precede those of the video."""
        return -((self.frames - 1) // self.temporal_compression + 1) % self.latent_multiple

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(C, F, h, w)."""
        return self.channels, self.latent_frames, self.height // self.compression, self.width // self.compression

    def of_latents(self, shape: Sequence[int]) -> Geometry:
        """The shape of videos whose latents have the shape (..., F, h, w), of the same autoencoder."""
        frames, height, width = shape[-3:]
        return attrs.evolve(
            self,
            frames=(frames - self.latent_padding - 1) * self.temporal_compression + 1,
            height=height * self.compression,
            width=width * self.compression,
        )

    @property
    def encoded_shape(self) -> tuple[int, int, int, int]:
        """(C, F', h, w) of what the autoencoder encodes, without padding."""
        channels, frames, height, width = self.latent_shape
        return channels, frames - self.latent_padding, height, width

    @property
    def pixel_shape(self) -> tuple[int, int, int, int]:
        """(F, 3, H, W)."""
        return self.frames, 3, self.height, self.width
