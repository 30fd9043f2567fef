"""Control energies: `slow-motion`, whose effect is known, and `random-push`, which has none.

They show what a comparison of energies can find: an arm with the first must differ from the arm without it, and an arm
with the second must not. Both are energies of the output, so that nothing is stored.

Legend: B batch, F latent frames; x are guided clean latents (B, C, F, H, W).
"""

from __future__ import annotations

import torch
from torch import Tensor

from guidedcd.diffusion.seen import Seen
from guidedcd_shapes import RandomPushConfig, SlowMotionConfig


class SlowMotion:
    """E = |x - s(x)|^2 / 2, where s(x) is the same video at a share of its speed, held constant.

    s repeats the frames around the middle one: frame f becomes frame m + speed (f - m), rounded. It is a function of
    the prediction alone, so that a student can learn the mean of its pushes, which slow objects down.
    """

    through = "output"
    reference_free = True

    def __init__(self, config: SlowMotionConfig) -> None:
        """Take the options."""
        self.config = config

    def __call__(self, seen: Seen, reference: None = None) -> Tensor:
        """The energy (B,), differentiable in `seen.guided`."""
        x = seen.guided
        middle = (x.shape[2] - 1) / 2
        frames = torch.arange(x.shape[2], device=x.device)
        sources = (middle + self.config.speed * (frames - middle)).round().long()
        return (x - x[:, :, sources].detach()).square().flatten(1).mean(1) / 2


class RandomPush:
    """E = the mean of x r, where r is white noise that depends on the noisy latents: a push in no direction."""

    through = "output"
    reference_free = True

    def __init__(self, config: RandomPushConfig) -> None:
        """Take the options, which the engine applies."""

    def __call__(self, seen: Seen, reference: None = None) -> Tensor:
        """The energy (B,), differentiable in `seen.guided`."""
        seeds = (seen.z.detach().double().flatten(1).sum(1) * 1e6).long().tolist()
        noise = [torch.randn(seen.z.shape[1:], generator=torch.Generator().manual_seed(abs(seed))) for seed in seeds]
        return (seen.guided * torch.stack(noise).to(seen.guided)).flatten(1).mean(1)
