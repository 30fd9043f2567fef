"""The size of a teacher's videos: that of its options, or the model's usual one, brought to what the network takes."""

from __future__ import annotations

import attrs

from guidedcd.data.geometry import Geometry
from guidedcd.errors import GuidedCDError
from guidedcd_dits import TransformerConfig


@attrs.frozen(kw_only=True)
class Sizes:
    """What a network and an autoencoder take, and the model's usual videos."""

    teacher: str
    """Name of the teacher, for errors."""
    channels: int
    """Latent channels."""
    temporal: int
    """Frames per latent frame."""
    spatial: int
    """Pixels per latent along height and width."""
    patch: tuple[int, int, int]
    """Latents per token along frames, height and width."""
    usual: tuple[int, int, int]
    """Usual frames, height and width."""

    def geometry(self, config: TransformerConfig, fps: float) -> Geometry:
        """The shape of videos and latents.

        Usual sizes that do not fit are rounded down, as the pipelines do; chosen ones are refused.

        Raises:
            GuidedCDError: A chosen size does not fit the autoencoder or the patches.
        """
        frames, height, width = self.usual
        tall, wide = self.spatial * self.patch[1], self.spatial * self.patch[2]
        long = self.temporal * self.patch[0]  # patches over time hold several latent frames
        first = (self.patch[0] - 1) * self.temporal + 1
        for name, value, multiple in (("height", config.height, tall), ("width", config.width, wide)):
            if value is not None and value % multiple:
                below = max(multiple, value // multiple * multiple)
                raise GuidedCDError(
                    f"{self.teacher}: {name} must be a multiple of {multiple}, the autoencoder's compression times the "
                    f"patch size: {value} is not. Use {below}."
                )
        if config.frames is not None and (config.frames < first or (config.frames - first) % long):
            below = max(first, (config.frames - first) // long * long + first)
            raise GuidedCDError(
                f"{self.teacher}: this autoencoder and network take {first}, {first + long}, {first + 2 * long}, ... "
                f"frames, not {config.frames}. Use {below} or {below + long}."
            )
        return Geometry(
            frames=config.frames or max(first, (frames - first) // long * long + first),
            height=config.height or max(tall, height // tall * tall),
            width=config.width or max(wide, width // wide * wide),
            fps=fps,
            channels=self.channels,
            compression=self.spatial,
            temporal_compression=self.temporal,
        )
