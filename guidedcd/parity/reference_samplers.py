"""What the publishers' own scripts compute and this package does otherwise, to compare with them.

VideoCrafter's DDIM sampler scales the clean latents, as the model was trained; T2V-Turbo distils without, as do we.
T2V-Turbo-v2's pipeline embeds the energy input in half precision; training did not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def scale_table(low: float = 0.7, middle: int = 400, timesteps: int = 1000) -> Tensor:
    """Scale of the clean latents by timestep: from 1 to `low` over the first `middle`, then `low`.

    The original table has `timesteps + middle` entries; the last ones are never read.
    """
    return torch.cat([torch.linspace(1.0, low, middle), torch.full((timesteps,), low)])


class Tables:
    """What the sampler reads at each of its steps, ascending in time, float64 (S,)."""

    def __init__(self, alphas_cumprod: Tensor, steps: int, scale: Tensor | None = None) -> None:
        """Pick the steps.

        Args:
            alphas_cumprod: Of the training schedule (T,).
            steps: How many; the timesteps are range(0, T, T // steps) + 1.
            scale: From `scale_table`; None samples without.
        """
        length = len(alphas_cumprod)
        self.timesteps = torch.arange(0, length, length // steps) + 1
        self.alphas, self.alphas_prev = _pair(alphas_cumprod, self.timesteps)
        ones = torch.ones(length)
        self.scale, self.scale_prev = _pair(ones if scale is None else scale, self.timesteps)

    def step(self, index: int, z: Tensor, eps: Tensor) -> Tensor:
        """One step down from step `index`, without added noise (eta 0)."""
        a, a_prev = self.alphas[index], self.alphas_prev[index]
        x0 = (z - (1 - a).sqrt() * eps) / a.sqrt() / self.scale[index]
        return a_prev.sqrt() * self.scale_prev[index] * x0 + (1 - a_prev).sqrt() * eps


def sample(
    conditional: Callable[[Tensor, int], Tensor],
    unconditional: Callable[[Tensor, int], Tensor],
    tables: Tables,
    z: Tensor,
    guidance_scale: float = 12.0,
) -> Tensor:
    """Clean latents from noise `z`, guided by u + guidance_scale (c - u), computed in float64."""
    z = z.double()
    for index in reversed(range(len(tables.timesteps))):
        t = int(tables.timesteps[index])
        u, c = unconditional(z, t), conditional(z, t)
        z = tables.step(index, z, u + guidance_scale * (c - u))
    return z


def half_embedding(w: Tensor, width: int = 256, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The energy input's embedding (B, width) as T2V-Turbo-v2's pipeline computes it in half precision.

    Phases are rounded before the sine, so it is another embedding than the one of training, which is
    `guidedcd.diffusion.embeddings.guidance_scale_embedding`.
    """
    half = width // 2
    rate = torch.log(torch.tensor(10000.0)) / (half - 1)
    phase = (w * 1000.0).to(dtype)[:, None] * torch.exp(torch.arange(half, dtype=dtype) * -rate)[None]
    return torch.cat([phase.sin(), phase.cos()], dim=1)


def _pair(table: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """The table at each step and at the step before; the first step comes from timestep 0."""
    return table[timesteps].double(), torch.cat([table[:1], table[timesteps[:-1]]]).double()
