"""The interface of a teacher, which the engine uses.

Legend: B batch, C latent channels, F frames, H/W pixels, h/w latent size, L text tokens, D text width.
Latents are (B, C, F, h, w), already scaled; pixels are (B, F, 3, H, W), float in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from guidedcd.data.geometry import Geometry
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.diffusion.seen import Seen

Cond = dict[str, Tensor]
"""Text conditioning: tensors with first dimension B, always with "prompt_embeds" (B, L, D)."""


class Teacher(Protocol):
    """A frozen text-to-video model behind one interface; every tensor is on `device`."""

    network: nn.Module
    """The denoiser; a student starts as a copy of it."""
    schedule: NoiseSchedule
    """Its noise levels by training timestep."""
    geometry: Geometry
    """The size of its videos and of their latents."""

    @property
    def device(self) -> torch.device:
        """The device of the weights."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the denoiser's weights."""

    def encode(self, video: Tensor) -> Tensor:
        """Latents of pixels, deterministic (posterior mode)."""

    def decode(self, z: Tensor, frames: Sequence[int] | Tensor | None = None) -> Tensor:
        """Pixels of the chosen frames (all by default), clamped to [0, 1], differentiable in `z`."""

    def embed(self, captions: Sequence[str]) -> Cond:
        """Conditioning of captions."""

    def null(self, batch: int) -> Cond:
        """Conditioning of the empty caption, `batch` times."""

    def net(
        self, z: Tensor, t: Tensor, cond: Cond, timestep_cond: Tensor | None = None, network: nn.Module | None = None
    ) -> Tensor:
        """The prediction of the denoiser (or `network`, a copy of it) for `z` at `t` (B,), like `z`."""

    def seen(self, z: Tensor, t: Tensor, cond: Cond, needs: Sequence[str] = (), captions: Sequence[str] = ()) -> Seen:
        """One forward pass, with the records that energies need; differentiable in `z` if it requires a gradient.

        Raises:
            NeedError: It cannot record one of `needs`.
        """

    def fingerprint(self) -> str:
        """A hexadecimal digest of weights and configuration."""

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Teacher:
        """Move everything, in place."""
