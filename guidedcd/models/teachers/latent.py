"""`LatentTeacher`: a teacher of a denoiser, an autoencoder, a text encoder and a schedule."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, nn

from guidedcd.acceleration.precision import computing_dtype
from guidedcd.data.geometry import Geometry
from guidedcd.devices import tensor_like
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.diffusion.seen import Seen
from guidedcd.errors import GuidedCDError
from guidedcd.models import attention_probes
from guidedcd.models.teachers.protocol import Cond

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet3DConditionModel


class LatentTeacher(nn.Module):
    """A diffusers video UNet with a per-frame `AutoencoderKL` and any text encoder. Frozen, always in eval mode."""

    tails = True
    """`seen` has the arguments `tail` and `recompute`, which the protocol does not require."""

    network: UNet3DConditionModel
    vae: AutoencoderKL | None
    text: Callable[[Sequence[str]], Cond] | None

    def __init__(
        self,
        *,
        network: UNet3DConditionModel,
        vae: AutoencoderKL | None,
        text: Callable[[Sequence[str]], Cond] | None,
        schedule: NoiseSchedule,
        geometry: Geometry,
    ) -> None:
        """Combine the networks and freeze them.

        Args:
            network: `UNet3DConditionModel` or a subclass of its interface.
            vae: `AutoencoderKL`, or None for a teacher that only receives latents.
            text: Captions to conditioning; an `nn.Module` moves with the teacher. None when only latents are used.
            schedule: Noise levels and prediction type.
            geometry: Size of the videos.
        """
        super().__init__()
        self.network, self.vae, self.text = network, vae, text
        self.schedule, self.geometry = schedule, geometry
        self._digest: str | None = None
        self._null: Cond | None = None
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> LatentTeacher:
        """Stay in eval mode for any `mode`, since a teacher is never trained."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the denoiser's weights."""
        return computing_dtype(self.network)

    def to(  # type: ignore[override]  # a module's `to` has many forms; the engine calls this one
        self, device: torch.device | str, dtype: torch.dtype | None = None
    ) -> LatentTeacher:
        """Move everything, in place; a change of dtype rounds the weights but keeps the fingerprint."""
        if dtype is not None and dtype != self.dtype:
            self.fingerprint()
        super().to(device=device, dtype=dtype)
        self.schedule.to(device)
        self._null = None
        return self

    def encode(self, video: Tensor) -> Tensor:
        """Latents (B, C, F, h, w) of pixels (B, F, 3, H, W) in [0, 1], float32, deterministic (posterior mode)."""
        vae, pixels = self._autoencoder, self._pixels(video.flatten(0, 1))
        z = torch.cat([vae.encode(images).latent_dist.mode() for images in pixels.split(16)])
        return self.scaled(z.float().unflatten(0, video.shape[:2]).transpose(1, 2)).contiguous()

    def _pixels(self, video: Tensor) -> Tensor:
        """The autoencoder's input, like `video`, of pixels in [0, 1].

        As in the pipelines, pixels are rounded in [-1, 1]: there, grey has more digits than in [0, 1].
        """
        return (video.to(self.device) * 2 - 1).to(next(self._autoencoder.parameters()).dtype)

    def scaled(self, z: Tensor) -> Tensor:
        """Latents as `encode` returns them, of the autoencoder's own (B, C, F, h, w)."""
        return (z - self._shift) * self._autoencoder.config.scaling_factor

    def decode(self, z: Tensor, frames: Sequence[int] | Tensor | None = None) -> Tensor:
        """Pixels (B, k, 3, H, W) in [0, 1] of the chosen frames, differentiable in `z`.

        Args:
            z: Clean latents (B, C, F, h, w).
            frames: Which frames (k,), the same for every video, or (B, k) for each its own; None takes all.
        """
        if frames is not None:
            index = tensor_like(frames, z, torch.long)
            index = index.expand(z.shape[0], -1)[:, None, :, None, None]
            z = z.gather(2, index.expand(-1, z.shape[1], -1, *z.shape[3:]))
        vae = self._autoencoder
        latents = z.transpose(1, 2).flatten(0, 1) / vae.config.scaling_factor + self._shift
        latents = latents.to(next(vae.parameters()).dtype)
        pixels = torch.cat([vae.decode(images).sample for images in latents.split(16)])
        return (pixels.to(z.dtype) / 2 + 0.5).clamp(0, 1).unflatten(0, (z.shape[0], z.shape[2]))

    def decode_exactly(self, z: Tensor, frames: Sequence[int] | Tensor | None = None) -> Tensor:
        """As `decode`; a teacher that may decode an approximation decodes exactly here, and where scores are stored."""
        return self.decode(z, frames)

    def embed(self, captions: Sequence[str]) -> Cond:
        """Conditioning of captions, on the teacher's device, without gradient."""
        if self.text is None:
            raise RuntimeError("this teacher has no text encoder")
        with torch.no_grad():
            return {name: value.to(self.device) for name, value in self.text(list(captions)).items()}

    def null(self, batch: int) -> Cond:
        """Conditioning of the empty caption, `batch` times."""
        if self._null is None:
            self._null = self.embed([""])
        return {name: value.expand(batch, *value.shape[1:]) for name, value in self._null.items()}

    def net(
        self, z: Tensor, t: Tensor, cond: Cond, timestep_cond: Tensor | None = None, network: nn.Module | None = None
    ) -> Tensor:
        """The prediction of the denoiser (or `network`) for `z` (B, C, F, h, w) at `t` (B,), like `z`.

        Args:
            z: Noisy latents.
            t: Training timesteps (B,) or one for all (1,).
            cond: Conditioning with first dimension B.
            timestep_cond: Guidance embedding (B, width) of a student.
            network: A copy of the denoiser to use instead, for example the student's.
        """
        network = self.network if network is None else network
        dtype = computing_dtype(network)
        arguments: dict[str, Any] = {} if timestep_cond is None else {"timestep_cond": timestep_cond.to(dtype)}
        output = network(
            z.to(dtype),
            self.schedule.network_time(t).expand(z.shape[0]),
            encoder_hidden_states=self.prompt(cond, z.shape[2]).to(dtype),
            return_dict=False,
            **arguments,
        )[0]
        return output.to(z.dtype)

    def prompt(self, cond: Cond, frames: int) -> Tensor:
        """The prompt embeddings in the network's layout; families that repeat them per frame override this."""
        return cond["prompt_embeds"]

    def seen(
        self,
        z: Tensor,
        t: Tensor,
        cond: Cond,
        needs: Sequence[str] = (),
        captions: Sequence[str] = (),
        *,
        tail: str = "whole",
        recompute: bool = False,
    ) -> Seen:
        """One forward pass at `t` (B,), with `records` for each of `needs` ("temporal-attention:LAYERS" for UNets).

        Args:
            z: Noisy latents (B, C, F, h, w).
            t: Training timesteps (B,).
            cond: Conditioning with first dimension B.
            needs: Which records to make.
            captions: Passed to the energies.
            tail: The rest of the pass after the last record: "whole", "detached" (without gradient), or "none" (it is
                not computed, and `output` is empty).
            recompute: Recompute the records for the gradient instead of saving their inputs.

        Raises:
            GuidedCDError: The network does not record a need, or the pass left it out.
        """
        t = t.expand(z.shape[0])
        output = z.new_empty(0)
        with self.recording(z, t, needs, tail=tail, recompute=recompute) as records:
            output = self.net(z, t, cond)
        if missing := [need for need in needs if not records[need]]:
            raise GuidedCDError(
                f"the forward pass of {type(self.network).__name__} did not run what '{missing[0]}' reads."
            )
        alpha, sigma = self.schedule.alpha_sigma(t)
        return Seen(
            z=z,
            t=t,
            alpha=alpha,
            sigma=sigma,
            output=output,
            timesteps=len(self.schedule),
            prediction=self.schedule.prediction,
            captions=tuple(captions),
            records=records,
            decoder=self.decode_exactly if self.vae is not None else None,
            frames=self.geometry.frames,
        )

    def recording(
        self, z: Tensor, t: Tensor, needs: Sequence[str], *, tail: str, recompute: bool
    ) -> AbstractContextManager[dict[str, dict[str, Tensor]]]:
        """A context in which a forward pass fills the records that it yields; the arguments are those of `seen`."""
        return attention_probes.record(self.network, needs, batch=z.shape[0], tail=tail, recompute=recompute)

    def fingerprint(self) -> str:
        """SHA-256 of every weight as loaded, of the network's and VAE's configuration, schedule and geometry."""
        if self._digest is None:
            digest = hashlib.sha256()
            modules = {"network": self.network, "vae": self.vae, "text": self.text, **self.networks()}
            for name, module in modules.items():
                if isinstance(module, nn.Module):
                    config = getattr(module, "config", None)
                    config = {k: v for k, v in config.items() if k[0] != "_"} if isinstance(config, Mapping) else {}
                    digest.update(f"{name} {json.dumps(config, sort_keys=True, default=str)}".encode())
                    for key, value in sorted(module.state_dict().items()):
                        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
                        digest.update(_bytes(value))
            geometry = attrs.asdict(self.geometry)
            for name in ("temporal_compression", "latent_multiple"):
                if geometry[name] == 1:
                    del geometry[name]  # the fingerprints of teachers that compress no time stay the same
            digest.update(f"{self.schedule.prediction} {geometry}".encode())
            digest.update(_bytes(self.schedule.alpha))
            digest.update(_bytes(self.schedule.sigma))
            if self.schedule.times is not None:
                digest.update(_bytes(self.schedule.times))
            for name, value in sorted(self.traits().items()):
                digest.update(f"{name} {value}".encode())
            self._digest = digest.hexdigest()
        return self._digest

    def resized(self, geometry: Geometry) -> LatentTeacher:
        """This teacher for videos of another size; the copy shares the networks."""
        teacher = copy.copy(self)
        teacher._modules = dict(self._modules)  # a shallow copy shares the dictionary of submodules
        teacher.geometry, teacher._digest = geometry, None
        return teacher

    def networks(self) -> dict[str, nn.Module]:
        """Other networks than `network`, `vae` and `text` on which predictions depend, by name."""
        return {}

    def traits(self) -> dict[str, Any]:
        """Other options than weights, schedule and geometry on which predictions depend, by name."""
        return {}

    @property
    def _autoencoder(self) -> AutoencoderKL:
        if self.vae is None:
            raise RuntimeError("this teacher has no autoencoder: it only receives latents")
        return self.vae

    @property
    def _shift(self) -> float:
        return getattr(self._autoencoder.config, "shift_factor", None) or 0.0


def _bytes(value: Tensor) -> Any:
    """The tensor's bytes as a buffer, without a further copy."""
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
