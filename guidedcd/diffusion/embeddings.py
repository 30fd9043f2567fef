"""Sinusoidal embeddings of the guidance strength and of energy strengths."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

EMBEDDING = 256
"""Width of the embedding of omega and of each energy's input."""


def guidance_scale_embedding(w: Tensor, dim: int = EMBEDDING, dtype: torch.dtype = torch.float32) -> Tensor:
    """Sinusoids of 1000 w as in LCM: (B,) to (B, dim), sines first, zero-padded if `dim` is odd.

    Frequencies are 1e4^(-j / (dim // 2 - 1)). They are computed in `dtype`, float32 by default for any network, because
    bfloat16 phases would give another embedding. One bit of a frequency moves a phase by 1e-3, so frequencies are
    computed on the CPU and are the same for every device.
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
    """The input of `cond_proj`: (B, 256), or (B, 256 + 256 E) with energies, float32; None without omega.

    Args:
        omega: Guidance strength (B,), embedded as it is.
        lambdas: Energy inputs (B, E), see `guidance.lambda_input`; None leaves them out, which differs from 0.

    Raises:
        ValueError: There are lambdas without omega.
    """
    if omega is None:
        if lambdas is not None:
            raise ValueError("lambdas need omega: a network with energy inputs needs omega as well")
        return None
    inputs = [omega] if lambdas is None else [omega, *lambdas.unbind(dim=1)]
    return torch.cat([guidance_scale_embedding(value) for value in inputs], dim=1)
