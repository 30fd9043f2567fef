"""Sinusoidal embeddings of the guidance strength and of energy strengths."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

EMBEDDING = 256
"""Width of the embedding of omega and of each energy's input."""


def guidance_scale_embedding(w: Tensor, dim: int = EMBEDDING, dtype: torch.dtype = torch.float32) -> Tensor:
    """Sinusoids of 1000 w, sines first, frequencies 1e4^(-j / (dim // 2 - 1)); (B,) to (B, dim), zero-padded if odd.

    Computed in `dtype`, float32 by default whatever the network's: bfloat16 phases would be another embedding. A last
    bit of a frequency moves a phase by 1e-3, so frequencies come from the CPU wherever `w` is, the same on any device.
    """
    # Without the cache on the meta device: a first and a second estimate of memory must count the same tensors.
    frequencies = _frequencies.__wrapped__ if w.is_meta else _frequencies
    phase = (w.to(dtype) * 1000.0)[:, None] * frequencies(dim // 2, dtype, w.device)[None]
    embedding = torch.cat([phase.sin(), phase.cos()], dim=1)
    return nn.functional.pad(embedding, (0, dim % 2))


@functools.lru_cache(maxsize=16)
def _frequencies(half: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # Cached, because a copy from the CPU waits for all work that the GPU has queued.
    with torch.inference_mode(False):
        rate = torch.log(torch.tensor(10000.0, dtype=dtype)) / max(half - 1, 1)
        return torch.exp(torch.arange(half, dtype=dtype) * -rate).to(device)


def guidance_embedding(omega: Tensor | None, lambdas: Tensor | None = None) -> Tensor | None:
    """What `cond_proj` is given (B, 256 or 256 + 256 E), float32; None without omega.

    Args:
        omega: Guidance strength (B,), embedded as it is.
        lambdas: Energy inputs (B, E), see `guidance.lambda_input`; 0 is an input too, None is "not told".
    """
    if omega is None:
        if lambdas is not None:
            raise ValueError("lambdas need omega: a network that is told energies is told omega as well")
        return None
    parts = [omega] if lambdas is None else [omega, *lambdas.unbind(dim=1)]
    return torch.cat([guidance_scale_embedding(part) for part in parts], dim=1)
