"""The shape of videos and latents."""

from __future__ import annotations

import attrs

from guidedcd.docstrings import documented


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

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(C, F, h, w)."""
        return self.channels, self.frames, self.height // self.compression, self.width // self.compression

    @property
    def pixel_shape(self) -> tuple[int, int, int, int]:
        """(F, 3, H, W)."""
        return self.frames, 3, self.height, self.width
