"""Triton kernels of the gradients of `guidedcd.fast.kernels`: everything that can be computed again is not kept.

Legend as there. Sums over tokens are made in parts, in a fixed order, so that gradients are the same at every run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from guidedcd.fast.kernels import CHUNKS, COLUMNS, ROWS

PROGRAMS = 528
"""Most partial sums of a layer norm's weights: four per multiprocessor of the largest GPUs."""


@triton.jit
def _parts(
    X, GRAD, STATS, WEIGHT, BIAS, SHIFT, STEP, at, inside, c, n, C, G, HAS_SHIFT: tl.constexpr, SILU: tl.constexpr
):
    """(normalised x, gradient behind SiLU, 1/std of each channel, weight) of a tile of tokens by channels."""
    known = c < C
    x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(GRAD + at, mask=inside, other=0.0).to(tl.float32)
    stats = STATS + (n * G + c // (C // G)) * 2
    center = tl.load(stats, mask=known, other=0.0)
    factor = tl.load(stats + 1, mask=known, other=0.0)
    if HAS_SHIFT:
        center -= tl.load(SHIFT + n * STEP + c, mask=known, other=0.0).to(tl.float32)
    weight = tl.load(WEIGHT + c, mask=known, other=0.0).to(tl.float32)
    x = tl.where(inside, (x - center[None, :]) * factor[None, :], 0.0)
    if SILU:
        z = x * weight[None, :] + tl.load(BIAS + c, mask=known, other=0.0).to(tl.float32)[None, :]
        s = 1.0 / (1.0 + tl.exp(-z))
        grad = grad * s * (1.0 + z * (1.0 - s))
    return x, grad, factor, weight


@triton.jit
def _sums(
    X, GRAD, STATS, WEIGHT, BIAS, SHIFT, STEP, SUMS, L, C, G, CHUNK, N,
    HAS_SHIFT: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums over a chunk of tokens, by channel: of the gradient, of gradient times x, and of x (normalised)."""
    chunk, n = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    ones = tl.zeros((COLUMNS,), tl.float32)
    products = tl.zeros((COLUMNS,), tl.float32)
    values = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, CHUNK, ROWS):
        r = start + tl.arange(0, ROWS)
        row = chunk * CHUNK + r
        inside = ((r < CHUNK) & (row < L))[:, None] & (c < C)[None, :]
        at = n * L * C + row[:, None] * C + c[None, :]
        x, grad, _, _ = _parts(X, GRAD, STATS, WEIGHT, BIAS, SHIFT, STEP, at, inside, c, n, C, G, HAS_SHIFT, SILU)
        ones += tl.sum(grad, axis=0)
        products += tl.sum(grad * x, axis=0)
        values += tl.sum(x, axis=0)
    at = (n * tl.num_programs(0) + chunk) * C + c
    step = N * tl.num_programs(0) * C
    tl.store(SUMS + at, ones, mask=c < C)
    tl.store(SUMS + step + at, products, mask=c < C)
    tl.store(SUMS + 2 * step + at, values, mask=c < C)


@triton.jit
def _back(
    X, GRAD, STATS, WEIGHT, BIAS, SHIFT, STEP, MEANS, DX, L, C, G,
    HAS_SHIFT: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < L)[:, None] & (c < C)[None, :]
    at = n * L * C + row[:, None] * C + c[None, :]
    x, grad, factor, weight = _parts(X, GRAD, STATS, WEIGHT, BIAS, SHIFT, STEP, at, inside, c, n, C, G, HAS_SHIFT, SILU)
    means = MEANS + (n * G + c // (C // G)) * 2
    mean = tl.load(means, mask=c < C, other=0.0)
    slope = tl.load(means + 1, mask=c < C, other=0.0)
    dx = factor[None, :] * (grad * weight[None, :] - mean[None, :] - x * slope[None, :])
    tl.store(DX + at, dx.to(DX.dtype.element_ty), mask=inside)


def group_norm_backward(
    grad: Tensor,
    x: Tensor,
    stats: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    silu: bool,
    shift: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `x` (N, L, C), of the weight and the bias (C,), and of the shift (N, C)."""
    grad = grad.contiguous()
    n, length, channels = x.shape
    chunk = max(ROWS, triton.next_power_of_2(triton.cdiv(length, CHUNKS)))
    chunks, columns = triton.cdiv(length, chunk), triton.cdiv(channels, COLUMNS)
    given = shift is not None
    common = (
        x, grad, stats, weight, bias, shift if given else stats,
        shift.stride(0) if given and shift.shape[0] > 1 else 0,
    )  # fmt: skip
    constants = {"HAS_SHIFT": given, "SILU": silu, "COLUMNS": COLUMNS}
    parts = torch.empty(3, n, chunks, channels, device=x.device, dtype=torch.float32)
    dx = torch.empty_like(x)
    with torch.cuda.device_of(x):
        _sums[chunks, n, columns](*common, parts, length, channels, groups, chunk, n, ROWS=ROWS, **constants)
        ones, products, values = parts.sum(dim=2)
        weight32 = weight.float()
        means = torch.stack((ones * weight32, products * weight32), dim=-1).view(n, groups, -1, 2).sum(dim=2)
        means /= length * (channels // groups)
        grid = triton.cdiv(length, 64), n, columns
        _back[grid](*common, means, dx, length, channels, groups, ROWS=64, **constants)
    each = means.repeat_interleave(channels // groups, dim=1)
    factor = stats[..., 1].repeat_interleave(channels // groups, dim=1)
    dshift = factor * (ones * weight32 - length * each[..., 0] - values * each[..., 1])
    return dx, products.sum(dim=0), ones.sum(dim=0), dshift


@triton.jit
def _layer_norm_back(
    X, GRAD, GSUM, DX, WEIGHT, DWEIGHT, DBIAS, M, C, eps,
    HAS_SUM: tl.constexpr, LEARNED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    c = tl.arange(0, COLUMNS)
    known = c < C
    weight = tl.load(WEIGHT + c, mask=known, other=0.0).to(tl.float32)
    dweight = tl.zeros((COLUMNS,), tl.float32)
    dbias = tl.zeros((COLUMNS,), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(M, ROWS), tl.num_programs(0)):
        row = tl.arange(0, ROWS).to(tl.int64) + tile * ROWS
        inside = (row < M)[:, None] & known[None, :]
        at = row[:, None] * C + c[None, :]
        x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(GRAD + at, mask=inside, other=0.0).to(tl.float32)
        d = tl.where(inside, x - (tl.sum(x, axis=1) / C)[:, None], 0.0)
        factor = 1.0 / tl.sqrt(tl.sum(d * d, axis=1) / C + eps)
        normed = d * factor[:, None]
        g = grad * weight[None, :]
        mean = tl.sum(g, axis=1) / C
        slope = tl.sum(g * normed, axis=1) / C
        dx = factor[:, None] * (g - mean[:, None] - normed * slope[:, None])
        if HAS_SUM:
            dx += tl.load(GSUM + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(DX + at, dx.to(DX.dtype.element_ty), mask=inside)
        if LEARNED:
            dweight += tl.sum(grad * normed, axis=0)
            dbias += tl.sum(grad, axis=0)
    if LEARNED:
        at = tl.program_id(0) * C + c
        tl.store(DWEIGHT + at, dweight, mask=known)
        tl.store(DBIAS + at, dbias, mask=known)


def layer_norm_backward(
    grad: Tensor, of_sum: Tensor | None, total: Tensor, weight: Tensor, eps: float, learned: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of the sum (..., C), given those of its norm and of itself, and of weight and bias if `learned`."""
    channels = total.shape[-1]
    rows = total.numel() // channels
    columns = triton.next_power_of_2(channels)
    per = max(1, 4096 // columns)
    programs = min(triton.cdiv(rows, per), PROGRAMS)
    dx = torch.empty_like(total)
    parts = torch.empty(2, programs if learned else 1, channels, device=dx.device, dtype=torch.float32)
    given = of_sum is not None
    with torch.cuda.device_of(total):
        _layer_norm_back[(programs,)](
            total, grad.contiguous(), of_sum.contiguous() if given else total, dx, weight, parts[0], parts[1],
            rows, channels, eps, HAS_SUM=given, LEARNED=learned, ROWS=per, COLUMNS=columns,
        )  # fmt: skip
    if not learned:
        return dx, None, None
    dweight, dbias = parts.sum(dim=1)
    return dx, dweight, dbias


@triton.jit
def _geglu_back(X, GRAD, DX, M, C, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < M)[:, None] & (c < C)[None, :]
    at = row[:, None] * (2 * C) + c[None, :]
    value = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(X + at + C, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(GRAD + row[:, None] * C + c[None, :], mask=inside, other=0.0).to(tl.float32)
    share = 0.5 * (1.0 + tl.math.erf(gate * 0.7071067811865476))
    slope = share + gate * 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    tl.store(DX + at, (grad * gate * share).to(DX.dtype.element_ty), mask=inside)
    tl.store(DX + at + C, (grad * value * slope).to(DX.dtype.element_ty), mask=inside)


def geglu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient of (..., 2 C), given that of (..., C)."""
    channels = x.shape[-1] // 2
    dx = torch.empty_like(x)
    rows = x.numel() // (2 * channels)
    with torch.cuda.device_of(x):
        _geglu_back[triton.cdiv(rows, 8), triton.cdiv(channels, 256)](
            x, grad.contiguous(), dx, rows, channels, ROWS=8, COLUMNS=256
        )
    return dx
