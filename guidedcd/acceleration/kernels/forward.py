"""Triton kernels on tokens: layer norm, gated GELU, residual sums, attention over frames.

Every kernel computes in float32 whatever its inputs are and rounds once, so a result is at least as accurate as the
stock chain of operations, which rounds between them. Legend: N groups of rows that are normalised together (frames or
videos), L tokens in each, C channels, G channel groups; M rows; B videos, F frames, P positions, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from guidedcd.acceleration.kernels.launch import Launcher, cdiv, power_of_2


@Launcher
@triton.jit
def _layer_norm(
    X, DELTA, SUM, Y, WEIGHT, BIAS, M, C, eps, HAS_DELTA: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, COLUMNS)
    valid = c < C
    inside = (row < M)[:, None] & valid[None, :]
    at = row[:, None] * C + c[None, :]
    x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_DELTA:
        x += tl.load(DELTA + at, mask=inside, other=0.0).to(tl.float32)
        rounded = x.to(SUM.dtype.element_ty)
        tl.store(SUM + at, rounded, mask=inside)
        x = rounded.to(tl.float32)
    center = tl.sum(x, axis=1) / C
    d = tl.where(inside, x - center[:, None], 0.0)
    factor = 1.0 / tl.sqrt(tl.sum(d * d, axis=1) / C + eps)
    weight = tl.load(WEIGHT + c, mask=valid, other=0.0).to(tl.float32)
    y = d * factor[:, None] * weight[None, :] + tl.load(BIAS + c, mask=valid, other=0.0).to(tl.float32)[None, :]
    tl.store(Y + at, y.to(Y.dtype.element_ty), mask=inside)


def layer_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(`x` + `delta`, its layer norm), all (..., C)."""
    x = x.contiguous()
    channels = x.shape[-1]
    rows = x.numel() // channels
    y = torch.empty(x.shape, device=x.device, dtype=dtype)
    total = x if delta is None else torch.empty_like(x)
    columns = power_of_2(channels)
    per = max(1, 4096 // columns)
    _layer_norm[(cdiv(rows, per),)](
        x, x if delta is None else delta.contiguous(), total, y, weight, bias, rows, channels, eps,
        HAS_DELTA=delta is not None, ROWS=per, COLUMNS=columns,
    )  # fmt: skip
    return total, y


@Launcher
@triton.jit
def _geglu(X, BIAS, Y, M, C, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < M)[:, None] & (c < C)[None, :]
    at = row[:, None] * (2 * C) + c[None, :]
    value = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(X + at + C, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        value += tl.load(BIAS + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
        gate += tl.load(BIAS + C + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    y = value * 0.5 * gate * (1.0 + tl.math.erf(gate * 0.7071067811865476))
    tl.store(Y + row[:, None] * C + c[None, :], y.to(Y.dtype.element_ty), mask=inside)


def geglu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """First half of the channels of `x` + `bias` times the exact GELU of the second, (..., 2 C) to (..., C)."""
    x = x.contiguous()
    channels = x.shape[-1] // 2
    y = torch.empty(*x.shape[:-1], channels, device=x.device, dtype=x.dtype)
    rows = y.numel() // channels
    _geglu[cdiv(rows, 8), cdiv(channels, 256)](
        x, x if bias is None else bias, y, rows, channels, HAS_BIAS=bias is not None, ROWS=8, COLUMNS=256
    )
    return y


@Launcher
@triton.jit
def _residual(X, Y, BIAS, OUT, M, C, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < M)[:, None] & (c < C)[None, :]
    at = row[:, None] * C + c[None, :]
    out = tl.load(X + at, mask=inside, other=0.0).to(tl.float32) + tl.load(Y + at, mask=inside, other=0.0).to(
        tl.float32
    )
    out += tl.load(BIAS + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    tl.store(OUT + at, out.to(OUT.dtype.element_ty), mask=inside)


def residual(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    """`x` + `y` + `bias`, (..., C), (..., C) and (C,)."""
    x, y = x.contiguous(), y.contiguous()
    out, channels = torch.empty_like(x), x.shape[-1]
    rows = x.numel() // channels
    grid = cdiv(rows, 32), cdiv(channels, 64)
    _residual[grid](x, y, bias, out, rows, channels, ROWS=32, COLUMNS=64)
    return out


@triton.jit
def _softmax(q, k, scale, valid, PRECISION: tl.constexpr):
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    s = tl.where(valid[None, :], s, float("-inf"))
    p = tl.exp(s - tl.max(s, axis=1)[:, None])
    return p / tl.sum(p, axis=1)[:, None]


@Launcher
@triton.jit
def _attend(
    Q, K, V, OUT, scale, P, F, D, ROW,
    HEADS: tl.constexpr, FRAMES: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One head at one position: F tokens, ROW elements apart from position to position, P * ROW from frame to frame."""
    h, p = tl.program_id(0) % HEADS, tl.program_id(0) // HEADS
    f, d = tl.arange(0, FRAMES), tl.arange(0, WIDTH)
    inside = (f < F)[:, None] & (d < D)[None, :]
    b = tl.program_id(1).to(tl.int64) * F * P
    at = (b + f * P + p)[:, None] * ROW + (h * D + d)[None, :]
    q = tl.load(Q + at, mask=inside, other=0.0)
    k = tl.load(K + at, mask=inside, other=0.0)
    v = tl.load(V + at, mask=inside, other=0.0)
    weights = _softmax(q, k, scale, f < F, PRECISION)
    out = tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
    to = (b + f * P + p)[:, None] * (HEADS * D) + (h * D + d)[None, :]
    tl.store(OUT + to, out.to(OUT.dtype.element_ty), mask=inside)


@Launcher
@triton.jit
def _attend_backward(
    Q, K, V, GRAD, DQ, DK, DV, scale, P, F, D, ROW,
    HEADS: tl.constexpr, FRAMES: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    h, p = tl.program_id(0) % HEADS, tl.program_id(0) // HEADS
    f, d = tl.arange(0, FRAMES), tl.arange(0, WIDTH)
    inside = (f < F)[:, None] & (d < D)[None, :]
    b = tl.program_id(1).to(tl.int64) * F * P
    at = (b + f * P + p)[:, None] * ROW + (h * D + d)[None, :]
    to = (b + f * P + p)[:, None] * (HEADS * D) + (h * D + d)[None, :]
    q = tl.load(Q + at, mask=inside, other=0.0)
    k = tl.load(K + at, mask=inside, other=0.0)
    v = tl.load(V + at, mask=inside, other=0.0)
    g = tl.load(GRAD + to, mask=inside, other=0.0)
    weights = _softmax(q, k, scale, f < F, PRECISION)
    dv = tl.dot(tl.trans(weights.to(g.dtype)), g, input_precision=PRECISION)
    dp = tl.dot(g, tl.trans(v), input_precision=PRECISION)
    ds = weights * (dp - tl.sum(dp * weights, axis=1)[:, None]) * scale
    ds = tl.where((f < F)[:, None], ds, 0.0).to(q.dtype)
    dq = tl.dot(ds, k, input_precision=PRECISION)
    dk = tl.dot(tl.trans(ds), q, input_precision=PRECISION)
    tl.store(DQ + at, dq.to(DQ.dtype.element_ty), mask=inside)
    tl.store(DK + at, dk.to(DK.dtype.element_ty), mask=inside)
    tl.store(DV + at, dv.to(DV.dtype.element_ty), mask=inside)


def _sizes(q: Tensor, heads: int) -> tuple[tuple[int, int], dict[str, int | str]]:
    width = q.shape[-1] // heads
    constants = {
        "HEADS": heads,
        "FRAMES": max(16, power_of_2(q.shape[1])),
        "WIDTH": max(16, power_of_2(width)),
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
    }
    return (q.shape[2] * heads, q.shape[0]), constants


def _forward(qkv: Sequence[Tensor], row: int, heads: int, scale: float) -> Tensor:
    """Attention of q, k and v, whose tokens lie `row` numbers apart, each token's channels side by side."""
    q = qkv[0]
    _, frames, positions, channels = q.shape
    out = torch.empty(q.shape, device=q.device, dtype=q.dtype)
    grid, constants = _sizes(q, heads)
    _attend[grid](*qkv, out, scale, positions, frames, channels // heads, row, num_warps=1, **constants)
    return out


def _backward(
    grad: Tensor, qkv: Sequence[Tensor], gradients: Sequence[Tensor], row: int, heads: int, scale: float
) -> None:
    """Write the gradients of q, k and v, in the layout of these; the attention is recomputed."""
    q = qkv[0]
    _, frames, positions, channels = q.shape
    grid, constants = _sizes(q, heads)
    _attend_backward[grid](
        *qkv, grad.contiguous(), *gradients, scale, positions, frames, channels // heads, row,
        num_warps=1, **constants,
    )  # fmt: skip


def frame_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
    """softmax(q k^T scale) v over the frames of (B, F, P, C), without transposing them in memory."""
    return _forward((q.contiguous(), k.contiguous(), v.contiguous()), q.shape[-1], heads, scale)


def frame_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    _backward(grad, (q, k, v), gradients, q.shape[-1], heads, scale)
    return gradients


def packed_frame_attention(qkv: Tensor, heads: int, scale: float) -> Tensor:
    """`frame_attention` of queries, keys and values side by side, (B, F, P, 3 C) to (B, F, P, C)."""
    return _forward(qkv.contiguous().chunk(3, dim=-1), qkv.shape[-1], heads, scale)


def packed_frame_attention_backward(grad: Tensor, qkv: Tensor, heads: int, scale: float) -> Tensor:
    """The gradient of `packed_frame_attention`, (B, F, P, 3 C)."""
    qkv = qkv.contiguous()
    gradient = torch.empty_like(qkv)
    _backward(grad, qkv.chunk(3, dim=-1), gradient.chunk(3, dim=-1), qkv.shape[-1], heads, scale)
    return gradient
