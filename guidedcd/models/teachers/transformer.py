"""`TransformerTeacher`: a teacher of a video transformer and an autoencoder that compresses time as well.

Legend: B batch, C latent channels, F frames, F' latent frames, H/W pixels, h/w latent size, k chosen frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from guidedcd.acceleration.precision import cast, computing_dtype
from guidedcd.devices import tensor_like
from guidedcd.errors import GuidedCDError
from guidedcd.models import recording
from guidedcd.models.self_attention_probes import SelfAttention, token_grid
from guidedcd.models.teachers.latent import LatentTeacher
from guidedcd.models.teachers.protocol import Cond
from guidedcd.models.teachers.video_decoding import VideoDecoding


class TransformerTeacher(VideoDecoding, LatentTeacher):
    """A diffusers video transformer with an autoencoder that encodes and decodes the frames of a video together.

    A family overrides `normalized`, `denormalized` and `predict`, and names its `time_embedding`, `blocks` and
    `adapter_targets`. `VideoDecoding` has what it may state about its decoder.
    """

    network: Any
    vae: Any
    time_embedding: str
    """Name of the module to whose output a student's guidance inputs are added."""
    blocks: Sequence[str] = ()
    """Names of the classes of the repeated blocks."""
    self_attention: str = "attn1"
    """Name of the self-attention in a block, whose queries and keys energies may read."""
    adapter_targets: str = r"(to_[qkv]|to_out\.0|net\.0\.proj|net\.2)$"
    """Regular expression of the layers that get adapters: attention and feed-forward, and no projection of time or
    text."""

    def normalized(self, z: Tensor) -> Tensor:
        """Latents (B, C, F, h, w) as the denoiser receives them, of the autoencoder's own; see `denormalized`."""
        return z

    def predict(self, network: Any, z: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """The prediction of a denoiser, like `z`.

        Args:
            network: The teacher's denoiser or a copy.
            z: Noisy latents (B, C, F, h, w) in the network's dtype.
            time: What the network receives as time (B,).
            cond: Conditioning with first dimension B.
        """
        raise NotImplementedError

    def to(  # type: ignore[override]  # as that of `LatentTeacher`
        self, device: torch.device | str, dtype: torch.dtype | None = None
    ) -> TransformerTeacher:
        """Move everything, in place; a change of dtype leaves in float32 what the network's class keeps there."""
        if dtype is not None and dtype != self.dtype:
            self.fingerprint()
            for module in (self.network, self.vae, self.text, *self.networks().values()):
                if isinstance(module, nn.Module):
                    cast(module, dtype)
        super().to(device)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the denoiser computes."""
        return computing_dtype(self.network)

    def encode(self, video: Tensor) -> Tensor:
        """Latents (B, C, F', h, w) of pixels (B, F, 3, H, W) in [0, 1], float32, deterministic (posterior mode).

        Raises:
            GuidedCDError: The autoencoder does not take this number of frames, or this height or width.
        """
        frames, _, height, width = video.shape[1:]
        attrs.evolve(self.geometry, frames=frames)  # its check has the sentence
        multiple = self.geometry.compression
        if height % multiple or width % multiple:
            raise GuidedCDError(f"height and width must be multiples of {multiple}: {height}x{width}.")
        return self.scaled(self._encoded(self._pixels(video.transpose(1, 2))).float()).contiguous()

    def scaled(self, z: Tensor) -> Tensor:
        """Latents as `encode` returns them, of the autoencoder's own: normalized, and padded where the family pads."""
        return self.normalized(z)

    def net(
        self, z: Tensor, t: Tensor, cond: Cond, timestep_cond: Tensor | None = None, network: nn.Module | None = None
    ) -> Tensor:
        """The prediction of the denoiser (or `network`) for `z` (B, C, F, h, w) at `t` (B,), like `z`.

        Args:
            z: Noisy latents.
            t: Training timesteps (B,) or one for all (1,); floating-point numbers are times of the network already.
            cond: Conditioning with first dimension B.
            timestep_cond: Not used: guidance enters at the output of `time_embedding`.
            network: A copy of the denoiser to use instead, for example the student's.

        Raises:
            ValueError: There is a `timestep_cond`.
        """
        if timestep_cond is not None:
            raise ValueError(f"{type(self).__name__} takes guidance inputs at its time embedding, not as timestep_cond")
        time = self.schedule.network_time(t).expand(z.shape[0])
        network = self.network if network is None else network
        return self.predict(network, z.to(computing_dtype(network)), time, cond).to(z.dtype)

    def recording(
        self, z: Tensor, t: Tensor, needs: Sequence[str], *, tail: str, recompute: bool
    ) -> AbstractContextManager[dict[str, dict[str, Tensor]]]:
        """As `LatentTeacher.recording`, of queries and keys; with `recompute` nothing more is computed again.

        Each need is "self-attention:BLOCK", or "self-attention" for the block at half the depth. Its record has
        "queries" and "keys" (B, heads, frames, height, width, width of a head) of the video's tokens.
        """
        if not needs:
            return nullcontext({})
        network = self.network_at(t)
        probe = SelfAttention(self.blocks, self.self_attention, token_grid(network.config, z.shape))
        return recording.record(network, needs, probe, tail=tail)

    def network_at(self, t: Tensor) -> Any:
        """The network that predicts at timesteps `t` (B,)."""
        return self.network

    def _encoded(self, pixels: Tensor) -> Tensor:
        """The posterior's mode (B, C, F', h, w) of pixels (B, 3, F, H, W) in [-1, 1]."""
        mode: Tensor = self._autoencoder.encode(pixels).latent_dist.mode()
        return mode


def channels(values: Sequence[float], like: Tensor) -> Tensor:
    """Numbers by channel (C,) as a tensor (1, C, 1, 1, 1) on the device and in the dtype of latents."""
    return tensor_like(values, like).view(1, -1, 1, 1, 1)
