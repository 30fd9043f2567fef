"""The forward passes that one shard of the latent store needs, and their results so far.

Legend: V videos, B jobs; latents (C, F, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from guidedcd.data.clips import Clip
from guidedcd.data.routing import Sample
from guidedcd.diffusion.randomness import Stream, noise


@attrs.frozen(kw_only=True)
class DrawJob:
    """One draw: a video with a noise and a noise level."""

    video: int
    """Number of the video in its shard."""
    draw: int
    """Number of the draw among those of its video."""
    index: int
    """Point of the solver's grid, from the clean end."""
    scored: bool
    """Whether the draw lies in the window in which energies act, and needs their gradients."""


@attrs.frozen(kw_only=True, eq=False)
class ShardJobs:
    """The clips of one shard, their draws, and the teacher's predictions so far, by number of the job."""

    clips: Sequence[Clip | Sample]
    """The clips, or the samples of a stored shard, whose latents are in the store."""
    z0: Tensor
    """Clean latents (V, C, F, H, W)."""
    cond: dict[str, Tensor]
    """Conditioning of the captions, first dimension V."""
    seeds: Sequence[int]
    """Noise seed by video."""
    jobs: Sequence[DrawJob]
    cond_output: dict[int, Tensor] = attrs.field(factory=dict)
    """By job, the prediction with the caption (C, F, H, W), on the CPU."""
    uncond_output: dict[int, Tensor] = attrs.field(factory=dict)
    """By job, the prediction without a caption (C, F, H, W), on the CPU."""
    moments: dict[int, Tensor] = attrs.field(factory=dict)
    """By job, the moments of its predictions (5,), see `guidedcd.diffusion.guidance.moments`, on the CPU."""
    scores: dict[str, dict[int, Tensor]] = attrs.field(factory=dict)
    """By energy and scored job, the energy's gradient (C, F, H, W), on the CPU."""

    def noise(self, numbers: Sequence[int], stream: Stream = Stream.DRAW_NOISE) -> Tensor:
        """Noise of some jobs (B, C, F, H, W), on the CPU."""
        jobs, shape = [self.jobs[number] for number in numbers], self.z0.shape[1:]
        return torch.stack([noise(self.seeds[job.video], job.draw, shape, stream) for job in jobs])

    def text(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """Conditioning of some jobs, first dimension B."""
        videos = [self.jobs[number].video for number in numbers]
        return {key: value[videos] for key, value in self.cond.items()}

    def clean(self, numbers: Sequence[int]) -> Tensor:
        """Clean latents of some jobs (B, C, F, H, W)."""
        return self.z0[[self.jobs[number].video for number in numbers]]

    def captions(self, numbers: Sequence[int]) -> list[str]:
        """Captions of some jobs (B)."""
        return [self.clips[self.jobs[number].video].caption for number in numbers]
