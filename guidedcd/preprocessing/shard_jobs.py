"""What one shard of the latent store asks of the teacher, and what has been said so far.

Legend: V videos, B jobs; latents (C, F, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from guidedcd.data.clips import Clip
from guidedcd.diffusion.randomness import Stream, noise


@attrs.frozen(kw_only=True)
class DrawJob:
    """What one pair of a video and a noise draw needs from the teacher."""

    video: int
    draw: int
    index: int
    scored: bool


@attrs.frozen(kw_only=True, eq=False)
class ShardJobs:
    """The clips of one shard, and what the teacher has said of them so far; results by place of the job."""

    clips: Sequence[Clip]
    z0: Tensor
    """Clean latents (V, C, F, H, W)."""
    cond: dict[str, Tensor]
    """Conditioning of the captions, first dimension V."""
    seeds: Sequence[int]
    """Noise seed by video."""
    jobs: Sequence[DrawJob]
    cond_output: dict[int, Tensor] = attrs.field(factory=dict)
    uncond_output: dict[int, Tensor] = attrs.field(factory=dict)
    scores: dict[str, dict[int, Tensor]] = attrs.field(factory=dict)

    def noises(self, places: Sequence[int], stream: Stream = Stream.DRAW_NOISE) -> Tensor:
        """Noise of some jobs (B, C, F, H, W), on the CPU."""
        jobs, shape = [self.jobs[p] for p in places], self.z0.shape[1:]
        return torch.stack([noise(self.seeds[job.video], job.draw, shape, stream) for job in jobs])

    def text(self, places: Sequence[int]) -> dict[str, Tensor]:
        """Conditioning of some jobs."""
        return {key: value[[self.jobs[p].video for p in places]] for key, value in self.cond.items()}

    def clean(self, places: Sequence[int]) -> Tensor:
        """Clean latents of some jobs."""
        return self.z0[[self.jobs[p].video for p in places]]

    def captions(self, places: Sequence[int]) -> list[str]:
        """Captions of some jobs."""
        return [self.clips[self.jobs[p].video].caption for p in places]
