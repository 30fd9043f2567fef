"""The embedded teacher of the video transformers: Wan's network in a small size, with the world's own autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import FlowMatchEulerDiscreteScheduler
from guidedcd_dits.wan import WanTeacher
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.models.teachers.latent import LatentTeacher
from guidedcd.models.teachers.scheduler_sampler import SchedulerSampler
from guidedcd_shapes import ShapesDitConfig, models
from guidedcd_shapes.teacher import Measured, WorldText, geometry, weights
from guidedcd_shapes.vocabulary import WorldTokenizer


class ShapesDit(Measured, WanTeacher):
    """The teacher `shapes-dit`, in float32 on the CPU. Its autoencoder compresses no time."""

    stage, solver = "dit-evaluation", "euler"

    def __init__(self, config: ShapesDitConfig) -> None:
        """Read the weights.

        Raises:
            GuidedCDError: The folder lacks a file.
        """
        folder, (vae, text, network) = weights("shapes-dit", config.path, ("vae", "text", "dit"))
        scheduler = FlowMatchEulerDiscreteScheduler(**{**models.FLOW_SCHEDULER, "shift": config.shift})
        super().__init__(
            network=network,
            vae=vae,
            text=WorldText(text, WorldTokenizer(models.CONTEXT["text"])),
            scheduler=scheduler,
            schedule=NoiseSchedule.from_scheduler(scheduler),
            geometry=geometry(),
        )
        self.folder = folder

    def encode(self, video: Tensor) -> Tensor:
        """Latents (B, C, F, h, w) of pixels (B, F, 3, H, W) in [0, 1], frame by frame, as `LatentTeacher.encode`."""
        return LatentTeacher.encode(self, video)

    def scaled(self, z: Tensor) -> Tensor:
        """Latents of the autoencoder, whose mean is 0 and standard deviation 1 already, as `LatentTeacher.scaled`."""
        return LatentTeacher.scaled(self, z)

    def decode(self, z: Tensor, frames: Sequence[int] | Tensor | None = None) -> Tensor:
        """Pixels (B, k, 3, H, W) in [0, 1] of the chosen frames alone, as `LatentTeacher.decode`."""
        return LatentTeacher.decode(self, z, frames)

    def decode_exactly(self, z: Tensor, frames: Sequence[int] | Tensor | None = None) -> Tensor:
        """As `decode`."""
        return self.decode(z, frames)

    def decode_recomputing(self, z: Tensor, frames: Sequence[int] | Tensor | None = None) -> Tensor:
        """As `decode`, with the decoder's activations computed again in the backward pass."""
        return checkpoint(self.decode, z, frames, use_reentrant=False, preserve_rng_state=False)

    def sampler(self, steps: int) -> SchedulerSampler:
        """Euler's method on evenly spaced times before the shift, 1, 1 - 1/S, ..., 1/S, as in the recipe."""
        times = [1 - i / steps for i in range(steps)]
        return SchedulerSampler(self.scheduler, steps, self.device, {"sigmas": times})
