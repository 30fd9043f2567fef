"""The size of a teacher's videos: that of its options, or the model's usual one, which is rounded down to fit."""

from __future__ import annotations

import attrs

from guidedcd.data.geometry import Geometry
from guidedcd.errors import GuidedCDError
from guidedcd_dits import TransformerConfig


@attrs.frozen(kw_only=True)
class Sizes:
    """The sizes that a network and an autoencoder accept, and the model's usual size."""

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
    odd: bool = False
    """Whether the autoencoder decodes odd numbers of latent frames only. Patches over time are then filled up with
    padding; otherwise the latent frames are a multiple of the patch."""

    def geometry(self, config: TransformerConfig, fps: float) -> Geometry:
        """The shape of videos and latents.

        Usual sizes that do not fit are rounded down, as the pipelines do; chosen ones are refused.

        Raises:
            GuidedCDError: A chosen size does not fit the autoencoder or the patches.
        """
        frames, height, width = self.usual
        return Geometry(
            frames=self._frames(config.frames, frames),
            height=self._side("height", config.height, height, self.spatial * self.patch[1]),
            width=self._side("width", config.width, width, self.spatial * self.patch[2]),
            fps=fps,
            channels=self.channels,
            compression=self.spatial,
            temporal_compression=self.temporal,
            latent_multiple=self.patch[0] if self.odd else 1,
        )

    def _side(self, name: str, chosen: int | None, usual: int, multiple: int) -> int:
        if chosen is not None and chosen % multiple:
            raise GuidedCDError(
                f"{self.teacher}: {name} must be a multiple of {multiple}, the autoencoder's compression times the "
                f"patch size: {chosen} is not. Use {max(multiple, chosen // multiple * multiple)}."
            )
        return chosen or max(multiple, usual // multiple * multiple)

    def _frames(self, chosen: int | None, usual: int) -> int:
        first, step = (self.patch[0] - 1) * self.temporal + 1, self.temporal * self.patch[0]
        if self.odd:
            first, step = 1, 2 * self.temporal
        below = max(first, ((chosen or usual) - first) // step * step + first)
        if chosen not in (None, below):
            raise GuidedCDError(
                f"{self.teacher}: this autoencoder and network take {first}, {first + step}, {first + 2 * step}, ... "
                f"frames, not {chosen}. Use {below} or {below + step}."
            )
        return below
