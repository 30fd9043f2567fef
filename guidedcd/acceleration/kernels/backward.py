"""Triton kernels for the gradients of the kernels in `forward`; they recompute intermediate values.

Legend as in `forward`. Sums over tokens are added in blocks of a fixed order, so gradients repeat exactly.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from guidedcd.acceleration.kernels.launch import Launcher, cdiv, power_of_2

PROGRAMS = 2112
"""Most partial sums of a layer norm's weights: sixteen, of one warp each, per multiprocessor of the largest GPUs."""
LEAST = 16
"""Fewest rows of one of them, so that the sums are small beside what is summed."""


@Launcher
@triton.jit
def _layer_norm_back(
    X, GRAD, GSUM, DX, WEIGHT, DWEIGHT, DBIAS, M, C, eps,
    HAS_SUM: tl.constexpr, LEARNED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    c = tl.arange(0, COLUMNS)
    valid = c < C
    weight = tl.load(WEIGHT + c, mask=valid, other=0.0).to(tl.float32)
    dweight = tl.zeros((COLUMNS,), tl.float32)
    dbias = tl.zeros((COLUMNS,), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(M, ROWS), tl.num_programs(0)):
        row = tl.arange(0, ROWS).to(tl.int64) + tile * ROWS
        inside = (row < M)[:, None] & valid[None, :]
        at = row[:, None] * C + c[None, :]
        x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(GRAD + at, mask=inside, other=0.0).to(tl.float32)
        if HAS_SUM:
            of_sum = tl.load(GSUM + at, mask=inside, other=0.0).to(tl.float32)
        d = tl.where(inside, x - (tl.sum(x, axis=1) / C)[:, None], 0.0)
        factor = 1.0 / tl.sqrt(tl.sum(d * d, axis=1) / C + eps)
        normed = d * factor[:, None]
        g = grad * weight[None, :]
        mean = tl.sum(g, axis=1) / C
        slope = tl.sum(g * normed, axis=1) / C
        dx = factor[:, None] * (g - mean[:, None] - normed * slope[:, None])
        if HAS_SUM:
            dx += of_sum
        tl.store(DX + at, dx.to(DX.dtype.element_ty), mask=inside)
        if LEARNED:
            dweight += tl.sum(grad * normed, axis=0)
            dbias += tl.sum(grad, axis=0)
    if LEARNED:
        at = tl.program_id(0) * C + c
        tl.store(DWEIGHT + at, dweight, mask=valid)
        tl.store(DBIAS + at, dbias, mask=valid)


def layer_norm_backward(
    grad: Tensor, of_sum: Tensor | None, total: Tensor, weight: Tensor, eps: float, learned: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the sum (..., C), from those of its norm and of itself; of weight and bias (2, C) if `learned`."""
    channels = total.shape[-1]
    rows = total.numel() // channels
    columns = power_of_2(channels)
    # A warp has whole rows to itself, if they are short enough: nothing waits for other warps.
    per, warps = max(1, 1024 // columns), min(max(1, columns // 1024), 8)
    programs = max(1, min(rows // LEAST, PROGRAMS // warps))
    dx = torch.empty_like(total)
    parts = torch.empty(2, programs if learned else 1, channels, device=dx.device, dtype=torch.float32)
    _layer_norm_back[(programs,)](
        total, grad.contiguous(), total if of_sum is None else of_sum.contiguous(), dx, weight, parts[0], parts[1],
        rows, channels, eps, HAS_SUM=of_sum is not None, LEARNED=learned, ROWS=per, COLUMNS=columns, num_warps=warps,
    )  # fmt: skip
    if not learned:
        return dx, None
    return dx, parts.sum(dim=1)


@Launcher
@triton.jit
def _geglu_back(
    X, BIAS, GRAD, DX, SUMS, M, C, CHUNK,
    HAS_BIAS: tl.constexpr, LEARNED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A chunk of rows, and the sums of its gradients: those of the bias."""
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    valid = c < C
    first = tl.program_id(1) * CHUNK
    last = tl.minimum(first + CHUNK, M)
    if HAS_BIAS:
        of_one = tl.load(BIAS + c, mask=valid, other=0.0).to(tl.float32)
        of_other = tl.load(BIAS + C + c, mask=valid, other=0.0).to(tl.float32)
    of_values = tl.zeros((ROWS, COLUMNS), tl.float32)
    of_gates = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS).to(tl.int64)
        inside = (row < last)[:, None] & valid[None, :]
        at = row[:, None] * (2 * C) + c[None, :]
        value = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
        gate = tl.load(X + at + C, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(GRAD + row[:, None] * C + c[None, :], mask=inside, other=0.0).to(tl.float32)
        if HAS_BIAS:
            value += of_one[None, :]
            gate += of_other[None, :]
        share = 0.5 * (1.0 + tl.math.erf(gate * 0.7071067811865476))
        slope = share + gate * 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
        of_value, of_gate = grad * gate * share, grad * value * slope
        tl.store(DX + at, of_value.to(DX.dtype.element_ty), mask=inside)
        tl.store(DX + at + C, of_gate.to(DX.dtype.element_ty), mask=inside)
        if LEARNED:
            of_values += of_value
            of_gates += of_gate
    if LEARNED:
        to = SUMS + tl.program_id(1) * (2 * C) + c
        tl.store(to, tl.sum(of_values, axis=0), mask=valid)
        tl.store(to + C, tl.sum(of_gates, axis=0), mask=valid)


def geglu_backward(
    grad: Tensor, x: Tensor, bias: Tensor | None = None, learned: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Gradients of `x` (..., 2 C), and of the bias (2 C,) in float32 if `learned`, from `grad` (..., C)."""
    channels = x.shape[-1] // 2
    dx = torch.empty_like(x)
    rows, columns = x.numel() // (2 * channels), cdiv(channels, 256)
    chunk = max(8, cdiv(cdiv(rows, max(1, PROGRAMS // columns)), 8) * 8)
    chunks = cdiv(rows, chunk)
    sums = torch.empty(chunks if learned else 0, 2 * channels, device=x.device, dtype=torch.float32)
    _geglu_back[columns, chunks](
        x, x if bias is None else bias, grad.contiguous(), dx, sums, rows, channels, chunk,
        HAS_BIAS=bias is not None, LEARNED=learned, ROWS=4, COLUMNS=256,
    )  # fmt: skip
    return dx, sums.sum(dim=0) if learned else None
