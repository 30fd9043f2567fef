"""Energies of the output: functions of the predicted clean latents after classifier-free guidance.

All compare with a reference; lower is better, and 0 is the least. `dynamics` and `saturation` are one-sided: a sample
that moves more, or saturates less, than its reference has the energy 0.

Legend: B batch, C channels, F latent frames, H and W of the latents; x are guided clean latents (B, C, F, H, W).
"""

from __future__ import annotations

import torch
from torch import Tensor

from guidedcd.diffusion.seen import Seen
from guidedcd_output_energies import DynamicsConfig, SaturationConfig, X0MotionConfig

SMALL = 1e-6
"""Added to variances before their logarithm: a still video has none."""


class X0Motion:
    """FlowMotion (arXiv:2603.06289): pairwise differences of frames, of the sample and of its reference.

    E = motion mean (|d_fj x| - |d_fj x_ref|)^2 + content mean (x - x_ref)^2, over pairs of frames f < j with
    j - f <= span, where d_fj x = x_j - x_f.
    """

    through = "output"

    def __init__(self, config: X0MotionConfig) -> None:
        """Take the options."""
        self.config = config

    def __call__(self, seen: Seen, reference: Seen) -> Tensor:
        """The energy (B,), differentiable in `seen.guided`."""
        config, x, target = self.config, seen.guided, reference.guided.detach()
        energy = 0 * x.flatten(1).sum(1)
        if config.motion:
            energy = energy + config.motion * self._motion(x, target)
        if config.content:
            energy = energy + config.content * (x - target).square().flatten(1).mean(1)
        return energy

    def _motion(self, x: Tensor, target: Tensor) -> Tensor:
        """The mean over pairs of frames, channels and positions (B,); 0 for one frame."""
        frames = x.shape[2]
        distance = torch.arange(frames, device=x.device)
        distance = (distance[:, None] - distance[None]).abs()
        span = frames if self.config.span is None else self.config.span
        pairs = ((distance > 0) & (distance <= span)).to(x.dtype)  # both orders of each pair, which are equal
        own, other = differences(x), differences(target)
        if not self.config.signed:
            own, other = own.abs(), other.abs()
        by_pair = (own - other).square().mean((1, 4, 5))
        return (by_pair * pairs).flatten(1).sum(1) / pairs.sum().clamp(min=1)


class Dynamics:
    """E = relu(log V(x_ref) + margin - log V(x))^2, where V is the mean over C, H and W of the variance over frames."""

    through = "output"

    def __init__(self, config: DynamicsConfig) -> None:
        """Take the options."""
        self.config = config

    def __call__(self, seen: Seen, reference: Seen) -> Tensor:
        """The energy (B,), differentiable in `seen.guided`; 0 outside of the noise levels at which it acts."""
        deficit = log_variance(reference.guided.detach()) + self.config.margin - log_variance(seen.guided)
        level = (seen.sigma / (seen.alpha + seen.sigma)).to(deficit.dtype)
        low, high = self.config.levels
        return torch.where((level >= low) & (level <= high), deficit.relu().square(), 0 * deficit)


class Saturation:
    """E = sum over channels of relu(log S_c(x) - log S_c(x_ref))^2, where S_c is the channel's standard deviation."""

    through = "output"

    def __init__(self, config: SaturationConfig) -> None:
        """Take the options, which the engine applies."""

    def __call__(self, seen: Seen, reference: Seen) -> Tensor:
        """The energy (B,), differentiable in `seen.guided`."""
        excess = log_deviations(seen.guided) - log_deviations(reference.guided.detach())
        return excess.relu().square().sum(1)


def differences(x: Tensor) -> Tensor:
    """Differences x_j - x_f of all pairs of frames (B, C, F, F, H, W)."""
    return x[:, :, None] - x[:, :, :, None]


def log_variance(x: Tensor) -> Tensor:
    """The logarithm (B,) of the mean variance over frames."""
    return (x.var(2, correction=0).flatten(1).mean(1) + SMALL).log()


def log_deviations(x: Tensor) -> Tensor:
    """The logarithm (B, C) of each channel's standard deviation over frames and positions."""
    return (x.flatten(2).var(2, correction=0) + SMALL).log() / 2
