"""Attention over positions by the faster fused kernel of its size: PyTorch's default or cuDNN's."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nnf
from torch.nn.attention import SDPBackend, sdpa_kernel

CHOOSE = True
"""Whether cuDNN's kernel is tried, which also needs `torch.backends.cudnn.benchmark`."""
MARGIN = 0.97
"""cuDNN's kernel is used if it needs less than this share of the default kernel's time."""
CUDNN = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_FASTER: dict[tuple[Any, ...], bool] = {}


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(q k^T scale) v of (N, heads, L, D), differentiable."""
    with sdpa_kernel(CUDNN, set_priority=True) if _cudnn_is_faster(q, k, v, scale) else contextlib.nullcontext():
        return nnf.scaled_dot_product_attention(q, k, v, scale=scale)


def tries(q: Tensor) -> bool:
    """Whether the kernels are compared for such queries."""
    usual = CHOOSE and q.is_cuda and q.dtype in (torch.bfloat16, torch.float16)
    return usual and torch.backends.cudnn.benchmark


def _cudnn_is_faster(q: Tensor, k: Tensor, v: Tensor, scale: float) -> bool:
    if torch.compiler.is_compiling() or not tries(q):
        return False
    graded = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    key = (q.device, q.dtype, graded, *((x.shape, x.stride()) for x in (q, k, v)))
    if key not in _FASTER:
        if q.is_cuda and torch.cuda.is_current_stream_capturing():
            return False
        inputs = [x.detach() for x in (q, k, v)]
        # In a separate thread, because a checkpoint around the caller must not count these calls.
        with ThreadPoolExecutor(1) as thread:
            _FASTER[key] = thread.submit(is_faster, inputs, scale, graded).result()
    return _FASTER[key]


def is_faster(inputs: list[Tensor], scale: float, graded: bool) -> bool:
    """Whether cuDNN's kernel takes less time for these q, k and v with the same result; with gradients if `graded`.

    A kernel that fails is not faster.
    """
    device = inputs[0].device
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.synchronize(device)
    q, k, v = (x.requires_grad_(graded) for x in inputs)

    def run() -> Tensor:
        out = nnf.scaled_dot_product_attention(q, k, v, scale=scale)
        if graded:
            torch.autograd.grad(out, (q, k, v), out.detach())
        return out.detach()

    with torch.set_grad_enabled(graded):
        usual, usual_seconds = run(), _seconds(run, device)
        try:
            with sdpa_kernel(CUDNN, set_priority=True):
                cudnn, cudnn_seconds = run(), _seconds(run, device)
        except RuntimeError:
            return False
    same = (usual.float() - cudnn.float()).norm() <= 1e-2 * usual.float().norm()
    return bool(same) and cudnn_seconds < MARGIN * usual_seconds


def _seconds(run: Any, device: torch.device, repeats: int = 5) -> float:
    """The mean duration of one call."""
    for timed in (False, True):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(repeats if timed else 1):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / repeats
