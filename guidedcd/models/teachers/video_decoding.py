"""`VideoDecoding`: what a teacher decodes if its autoencoder compresses time, with little memory for the gradient.

Legend: B batch, C latent channels, F frames, L latent frames, H/W pixels, h/w latent size, k chosen frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from guidedcd.acceleration.activation_checkpointing import Activated, light_gradients
from guidedcd.acceleration.autoencoders import LayerPaths
from guidedcd.data.geometry import Geometry
from guidedcd.devices import tensor_like
from guidedcd.models.checkpoints.tiny_autoencoder import read_tiny
from guidedcd.models.teachers.windows import Window, latent_frame, windows
from guidedcd.plugins.decode_policies import DecodePolicy


class VideoDecoding:
    """The method `decode` of a teacher whose autoencoder compresses time; it must be the first base class.

    A family defines what is special about its decoder: `causal`, `frames_together`, `decoder_norms`, `decoder_layers`,
    and either `decoder_step` with `decoder_output`, or `decoder_blocks`. It may have `autoencoder_paths`.
    """

    geometry: Geometry
    vae: Any
    network: Any
    decoder_norms: ClassVar[Activated] = {}
    """By class of a module of the autoencoder, the names of its norms and of the activation that follows them. The
    decoder's are computed again in the backward pass, and `--fast blocks` compiles all of them."""
    autoencoder_paths: ClassVar[LayerPaths] = {}
    """By class of a layer of the autoencoder, a forward method with the same values that `--fast` uses on GPUs."""
    decoder_layers: Sequence[str] = ()
    """Names of other classes of cheap layers of the decoder, which are computed again."""
    decoder_blocks: Sequence[str] = ()
    """Names of classes of blocks of the decoder that `decode_recomputing` computes again."""

    def __init__(self, *, decode: str = "full", **parts: Any) -> None:
        """Combine the networks.

        Args:
            decode: A `DecodePolicy` as text: what is decoded when frames are chosen.
            parts: Arguments of the next base class.

        Raises:
            GuidedCDError: A file of a tiny autoencoder is missing, damaged or for other latents.
        """
        super().__init__(**parts)
        self.policy = DecodePolicy.parse(decode)
        self.tiny: nn.Module | None = None
        if self.policy.kind == "tiny":
            weights = not next(self.network.parameters()).is_meta
            self.tiny = read_tiny(self.policy.file, self.geometry, weights=weights)

    @property
    def causal(self) -> bool:
        """Whether no decoded frame depends on later latent frames."""
        return True

    @property
    def frames_together(self) -> int:
        """Latent frames that the autoencoder decodes at once; the first ones of a video also include the remainder."""
        return 1

    @property
    def decoded_frames(self) -> int:
        """The number of first frames from which `decode` can choose."""
        return 1 if self.policy.kind == "first" else self.geometry.frames

    def decode(self, z: Tensor, frames: Sequence[int] | Tensor | None = None) -> Tensor:
        """Pixels (B, k, 3, H, W) in [0, 1] of the chosen frames, differentiable in `z`.

        Without chosen frames, the autoencoder decodes all of them. The policy applies to chosen frames only.

        Args:
            z: Clean latents (B, C, L, h, w), with the padding of the geometry.
            frames: Frames (k,) that are the same for every video, or (B, k) for each video; None takes all.

        Raises:
            ValueError: The policy is `first`, and other frames than 0 are chosen.
        """
        return self._frames(z, frames, self._run, self.policy)

    def decode_exactly(self, z: Tensor, frames: Sequence[int] | Tensor | None = None) -> Tensor:
        """As `decode` with the policy `full`: the frames of the autoencoder itself."""
        return self._frames(z, frames, self._run, DecodePolicy())

    def decode_recomputing(self, z: Tensor, frames: Sequence[int] | Tensor | None = None) -> Tensor:
        """As `decode`, with activations of the decoder computed again in the backward pass: less memory, more time."""
        return self._frames(z, frames, self._run_recomputing, self.policy)

    def denormalized(self, z: Tensor) -> Tensor:
        """Latents (B, C, L, h, w) in the autoencoder's own scale, of latents in that of the denoiser."""
        return z

    def decoder_step(self, latents: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Decode the next latent frames of a video; exact for the whole video.

        Args:
            latents: The autoencoder's own (B, C, l, h, w), a multiple of `frames_together`; the first ones of a video
                also include the remainder.
            state: The decoder's state after the earlier latent frames, not to be changed in place; None at the start.

        Returns:
            Their output, and the state after them.
        """
        raise NotImplementedError

    def decoder_output(self, outputs: Tensor) -> Tensor:
        """Pixels (B, 3, F, H, W) in [-1, 1] of the outputs of `decoder_step`, joined along dimension 2."""
        return outputs

    def _decoded(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, F, H, W) in [-1, 1] of the autoencoder's own latents."""
        pixels: Tensor = self.vae.decode(latents, return_dict=False)[0]
        return pixels

    def _frames(
        self,
        z: Tensor,
        frames: Sequence[int] | Tensor | None,
        run: Callable[[Tensor], Tensor],
        policy: DecodePolicy,
    ) -> Tensor:
        z, temporal = z[:, :, self.geometry.latent_padding :], self.geometry.temporal_compression
        if frames is None:
            return run(z).transpose(1, 2)
        rows: list[Any] = frames.tolist() if isinstance(frames, Tensor) else list(frames)
        each = bool(rows) and isinstance(rows[0], list)
        numbers = sorted({number for row in rows for number in row} if each else set(rows))
        if policy.kind == "first" and numbers != [0]:
            raise ValueError(f"frames {numbers} are chosen, and the policy first decodes frame 0 alone")
        pieces: list[Tensor] = []
        columns: dict[int, int] = {}
        run = self._run_tiny if policy.kind == "tiny" else run
        for window in self._windows(policy, numbers, z.shape[2]):
            own = [number for number in numbers if window.contains(number, temporal)]
            pixels = run(z[:, :, window.start : window.stop])
            pieces.append(pixels[:, :, _index([window.frame(number, temporal) for number in own], z)])
            columns |= {number: len(columns) + position for position, number in enumerate(own)}
        pixels = torch.cat(pieces, dim=2).transpose(1, 2)
        if not each:
            return pixels[:, _index([columns[number] for number in rows], z)]
        index = _index([[columns[number] for number in row] for row in rows], z)
        index = index.expand(len(z), -1)[:, :, None, None, None]
        return pixels.gather(1, index.expand(-1, -1, *pixels.shape[2:]))

    def _windows(self, policy: DecodePolicy, frames: Sequence[int], total: int) -> list[Window]:
        """The windows that are decoded for these frames of a video with `total` latent frames."""
        temporal, together = self.geometry.temporal_compression, self.frames_together
        if policy.kind == "first":
            return [Window(0, min(together + total % together, total))]
        if policy.kind == "window":
            return windows(frames, policy.window, total, temporal, together=together, causal=self.causal)
        if policy.kind == "tiny":  # causal
            return [Window(0, latent_frame(frames[-1], temporal) + 1)]
        return [Window(0, total)]

    def _run(self, z: Tensor) -> Tensor:
        """Pixels (B, 3, F, H, W) in [0, 1] of latents in the denoiser's scale."""
        latents = self._latents(z)
        if not _graded(latents):
            return _unit(self._decoded(latents), z.dtype)
        with light_gradients(self.vae, self.decoder_norms, self.decoder_layers):
            return _unit(self._decoded(latents), z.dtype)

    def _run_recomputing(self, z: Tensor) -> Tensor:
        """As `_run`, with activations of several latent frames, or of single blocks, at a time."""
        latents = self._latents(z)
        if not _graded(latents):
            return self._run(z)
        if type(self).decoder_step is VideoDecoding.decoder_step:
            again = {*self.decoder_layers, *self.decoder_blocks}
            with light_gradients(self.vae, self.decoder_norms, again):
                return _unit(self._decoded(latents), z.dtype)
        together = self.frames_together
        count, rest = divmod(latents.shape[2], together)
        # The state between two pieces needs about as much memory as the activations of a latent frame.
        piece = (math.isqrt(count) if count > 2 else max(count, 1)) * together
        state, outputs = None, []
        for start in (0, *range(piece + rest, latents.shape[2], piece)):
            stop = start + piece + (0 if start else rest)
            output, state = checkpoint(
                self._light_step, latents[:, :, start:stop], state, use_reentrant=False, preserve_rng_state=False
            )
            outputs.append(output)
        return _unit(self.decoder_output(torch.cat(outputs, dim=2)), z.dtype)

    def _light_step(self, latents: Tensor, state: Any) -> tuple[Tensor, Any]:
        with light_gradients(self.vae, self.decoder_norms, self.decoder_layers):
            return self.decoder_step(latents, state)

    def _run_tiny(self, z: Tensor) -> Tensor:
        assert self.tiny is not None
        tiny, dtype = self.tiny, _dtype(self.vae)
        if _dtype(tiny) != dtype:
            tiny.to(dtype)
        pixels: Tensor = tiny(z.to(dtype))
        return pixels.to(z.dtype)

    def _latents(self, z: Tensor) -> Tensor:
        """The autoencoder's own latents, in its dtype."""
        if self.vae is None:
            raise RuntimeError("this teacher has no autoencoder: it only receives latents")
        return self.denormalized(z).to(_dtype(self.vae))


def _index(numbers: list[Any], like: Tensor) -> Tensor:
    return tensor_like(numbers, like, torch.long)


def _graded(latents: Tensor) -> bool:
    return torch.is_grad_enabled() and latents.requires_grad


def _unit(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """Pixels in [0, 1] of those in [-1, 1]."""
    return (pixels.to(dtype) / 2 + 0.5).clamp(0, 1)


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype
