"""The publishers' own samplers, where they differ from this package, as references for comparison.

VideoCrafter's DDIM sampler scales the clean latents, as in the training of the model; T2V-Turbo and this package
distil without the scale. T2V-Turbo-v2's pipeline embeds the energy input in half precision; its training did not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def scale_table(low: float = 0.7, middle: int = 400, timesteps: int = 1000) -> Tensor:
    """Scale of the clean latents by timestep: from 1 to `low` over the first `middle` timesteps, then `low`.

    The table has `timesteps + middle` entries, as the original; the last `middle` are never read.
    """
    return torch.cat([torch.linspace(1.0, low, middle), torch.full((timesteps,), low)])


class Tables:
    """Tables of the sampler, one entry for each of its S steps, ascending in time, float64 (S,)."""

    def __init__(self, alphas_cumprod: Tensor, steps: int, scale: Tensor | None = None) -> None:
        """Read the tables at the steps of the sampler.

        Args:
            alphas_cumprod: The training schedule (T,).
            steps: The number of steps; the timesteps are range(0, T, T // steps) + 1.
            scale: The output of `scale_table`; None for 1 everywhere.
        """
        length = len(alphas_cumprod)
        self.timesteps = torch.arange(0, length, length // steps) + 1
        self.alphas, self.alphas_prev = _pair(alphas_cumprod, self.timesteps)
        ones = torch.ones(length)
        self.scale, self.scale_prev = _pair(ones if scale is None else scale, self.timesteps)

    def step(self, index: int, z: Tensor, eps: Tensor) -> Tensor:
        """Latents like `z` after one DDIM step down from step `index`, without added noise (eta 0)."""
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
    """Clean latents from noise `z`, with classifier-free guidance u + guidance_scale (c - u), float64."""
    z = z.double()
    for index in reversed(range(len(tables.timesteps))):
        t = int(tables.timesteps[index])
        u, c = unconditional(z, t), conditional(z, t)
        z = tables.step(index, z, u + guidance_scale * (c - u))
    return z


def half_embedding(w: Tensor, width: int = 256, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The energy input's embedding (B, width) as T2V-Turbo-v2's pipeline computes it in half precision.

    Phases are rounded before the sine, so that it differs from the embedding of training,
    `guidedcd.diffusion.embeddings.guidance_scale_embedding`.
    """
    half = width // 2
    rate = torch.log(torch.tensor(10000.0)) / (half - 1)
    phase = (w * 1000.0).to(dtype)[:, None] * torch.exp(torch.arange(half, dtype=dtype) * -rate)[None]
    return torch.cat([phase.sin(), phase.cos()], dim=1)


def _pair(table: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """The table at each step and at the next lower one, which is timestep 0 for the first step."""
    return table[timesteps].double(), torch.cat([table[:1], table[timesteps[:-1]]]).double()
