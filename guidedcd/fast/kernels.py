"""Triton kernels on tokens: group norm, layer norm, gated GELU, residual sums, attention over frames.

Every kernel computes in float32 whatever its inputs are and rounds once, so a result is at least as accurate as the
stock chain of operations, which rounds between them. Legend: N groups of rows that are normalised together (frames or
videos), L tokens in each, C channels, G channel groups; M rows; B videos, F frames, P positions, D channels of a head.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 32, 64
"""A tile of tokens by channels: one program's rows of 128 bytes."""
CHUNKS = 128
"""About how many chunks the tokens of one norm are cut into."""


@triton.jit
def _moments(X, MEAN, M2, L, C, CHUNK, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Mean and sum of squared deviations of each channel in one chunk of tokens."""
    chunk, n = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    r = tl.arange(0, ROWS)
    X += n * L * C
    first = chunk * CHUNK
    # Deviations from the chunk's first token: no cancellation when a channel's mean is far from zero.
    origin = tl.load(X + first * C + c, mask=c < C, other=0.0).to(tl.float32)
    total = tl.zeros((COLUMNS,), tl.float32)
    squares = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, CHUNK, ROWS):
        row = first + start + r
        inside = ((start + r < CHUNK) & (row < L))[:, None] & (c < C)[None, :]
        x = tl.load(X + row[:, None] * C + c[None, :], mask=inside, other=0.0).to(tl.float32)
        d = tl.where(inside, x - origin[None, :], 0.0)
        total += tl.sum(d, axis=0)
        squares += tl.sum(d * d, axis=0)
    count = tl.minimum(CHUNK, L - first).to(tl.float32)
    at = (n * tl.num_programs(0) + chunk) * C + c
    tl.store(MEAN + at, origin + total / count, mask=c < C)
    tl.store(M2 + at, squares - total * total / count, mask=c < C)


@triton.jit
def _combine(
    MEAN, M2, SHIFT, STEP, STATS, L, C, G, CHUNK, CHUNKS, eps,
    HAS_SHIFT: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Mean and 1/std of each (n, group), from the moments of its channels and chunks."""
    n, g = tl.program_id(0).to(tl.int64), tl.program_id(1)
    size = C // G
    k, j = tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    c = g * size + j
    inside = (k < CHUNKS)[:, None] & (j < size)[None, :]
    at = (n * CHUNKS + k[:, None]) * C + c[None, :]
    mean = tl.load(MEAN + at, mask=inside, other=0.0)
    if HAS_SHIFT:
        mean += tl.load(SHIFT + n * STEP + c, mask=j < size, other=0.0).to(tl.float32)[None, :]
    count = tl.where(inside, tl.minimum(CHUNK, L - k * CHUNK)[:, None].to(tl.float32), 0.0)
    whole = size * L * 1.0
    center = tl.sum(tl.sum(mean * count, axis=1), axis=0) / whole
    m2 = tl.load(M2 + at, mask=inside, other=0.0) + count * (mean - center) * (mean - center)
    var = tl.sum(tl.sum(m2, axis=1), axis=0) / whole
    tl.store(STATS + (n * G + g) * 2, center)
    tl.store(STATS + (n * G + g) * 2 + 1, 1.0 / tl.sqrt(var + eps))


@triton.jit
def _normalise(
    X, Y, STATS, WEIGHT, BIAS, SHIFT, STEP, L, C, G,
    HAS_SHIFT: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    known = c < C
    at = n * L * C + row[:, None] * C + c[None, :]
    inside = (row < L)[:, None] & known[None, :]
    x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    stats = STATS + (n * G + c // (C // G)) * 2
    center = tl.load(stats, mask=known, other=0.0)
    if HAS_SHIFT:
        center -= tl.load(SHIFT + n * STEP + c, mask=known, other=0.0).to(tl.float32)
    factor = tl.load(stats + 1, mask=known, other=0.0) * tl.load(WEIGHT + c, mask=known, other=0.0).to(tl.float32)
    y = (x - center[None, :]) * factor[None, :] + tl.load(BIAS + c, mask=known, other=0.0).to(tl.float32)[None, :]
    if SILU:
        y = y / (1.0 + tl.exp(-y))
    tl.store(Y + at, y.to(Y.dtype.element_ty), mask=inside)


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    shift: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Group norm of `x` + `shift`, (N, L, C), then SiLU; and mean and 1/std (N, G, 2). `shift` is (N, C) or (1, C)."""
    x = x.contiguous()
    n, length, channels = x.shape
    chunk = max(ROWS, triton.next_power_of_2(triton.cdiv(length, CHUNKS)))
    chunks, columns = triton.cdiv(length, chunk), triton.cdiv(channels, COLUMNS)
    moments = torch.empty(2, n, chunks, channels, device=x.device, dtype=torch.float32)
    stats = torch.empty(n, groups, 2, device=x.device, dtype=torch.float32)
    y = torch.empty(x.shape, device=x.device, dtype=dtype)
    given = shift is not None
    step = shift.stride(0) if given and shift.shape[0] > 1 else 0
    shift = shift if given else stats
    block, width = triton.next_power_of_2(chunks), triton.next_power_of_2(channels // groups)
    with torch.cuda.device_of(x):
        _moments[chunks, n, columns](x, moments[0], moments[1], length, channels, chunk, ROWS=ROWS, COLUMNS=COLUMNS)
        _combine[n, groups](
            moments[0], moments[1], shift, step, stats, length, channels, groups, chunk, chunks, eps,
            HAS_SHIFT=given, BLOCK=block, WIDTH=width,
        )  # fmt: skip
        _normalise[triton.cdiv(length, 64), n, columns](
            x, y, stats, weight, bias, shift, step, length, channels, groups,
            HAS_SHIFT=given, SILU=silu, ROWS=64, COLUMNS=COLUMNS,
        )  # fmt: skip
    return y, stats


@triton.jit
def _layer_norm(
    X, DELTA, SUM, Y, WEIGHT, BIAS, M, C, eps, HAS_DELTA: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, COLUMNS)
    known = c < C
    inside = (row < M)[:, None] & known[None, :]
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
    weight = tl.load(WEIGHT + c, mask=known, other=0.0).to(tl.float32)
    y = d * factor[:, None] * weight[None, :] + tl.load(BIAS + c, mask=known, other=0.0).to(tl.float32)[None, :]
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
    columns = triton.next_power_of_2(channels)
    per = max(1, 4096 // columns)
    with torch.cuda.device_of(x):
        _layer_norm[(triton.cdiv(rows, per),)](
            x, x if delta is None else delta.contiguous(), total, y, weight, bias, rows, channels, eps,
            HAS_DELTA=delta is not None, ROWS=per, COLUMNS=columns,
        )  # fmt: skip
    return total, y


@triton.jit
def _geglu(X, Y, M, C, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < M)[:, None] & (c < C)[None, :]
    at = row[:, None] * (2 * C) + c[None, :]
    value = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(X + at + C, mask=inside, other=0.0).to(tl.float32)
    y = value * 0.5 * gate * (1.0 + tl.math.erf(gate * 0.7071067811865476))
    tl.store(Y + row[:, None] * C + c[None, :], y.to(Y.dtype.element_ty), mask=inside)


def geglu(x: Tensor) -> Tensor:
    """First half of the channels times the exact GELU of the second, (..., 2 C) to (..., C)."""
    x = x.contiguous()
    channels = x.shape[-1] // 2
    y = torch.empty(*x.shape[:-1], channels, device=x.device, dtype=x.dtype)
    rows = y.numel() // channels
    with torch.cuda.device_of(x):
        _geglu[triton.cdiv(rows, 8), triton.cdiv(channels, 256)](x, y, rows, channels, ROWS=8, COLUMNS=256)
    return y


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
    grid = triton.cdiv(rows, 32), triton.cdiv(channels, 64)
    with torch.cuda.device_of(x):
        _residual[grid](x, y, bias, out, rows, channels, ROWS=32, COLUMNS=64)
    return out


@triton.jit
def _softmax(q, k, scale, known, PRECISION: tl.constexpr):
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    s = tl.where(known[None, :], s, float("-inf"))
    p = tl.exp(s - tl.max(s, axis=1)[:, None])
    return p / tl.sum(p, axis=1)[:, None]


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
    tl.store(DQ + to, dq.to(DQ.dtype.element_ty), mask=inside)
    tl.store(DK + to, dk.to(DK.dtype.element_ty), mask=inside)
    tl.store(DV + to, dv.to(DV.dtype.element_ty), mask=inside)


def _sizes(q: Tensor, heads: int) -> tuple[tuple[int, int], dict[str, int | str]]:
    width = q.shape[-1] // heads
    constants = {
        "HEADS": heads,
        "FRAMES": max(16, triton.next_power_of_2(q.shape[1])),
        "WIDTH": max(16, triton.next_power_of_2(width)),
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
    }
    return (q.shape[2] * heads, q.shape[0]), constants


def frame_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
    """softmax(q k^T scale) v over frames, (B, F, P, C); frames stay where they are, nothing is transposed in memory."""
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    (_, frames, positions, channels), out = q.shape, torch.empty_like(q)
    grid, constants = _sizes(q, heads)
    with torch.cuda.device_of(q):
        _attend[grid](q, k, v, out, scale, positions, frames, channels // heads, channels, num_warps=1, **constants)
    return out


def frame_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; the attention is computed again rather than kept."""
    grad, q, k, v = grad.contiguous(), q.contiguous(), k.contiguous(), v.contiguous()
    _, frames, positions, channels = q.shape
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    grid, constants = _sizes(q, heads)
    with torch.cuda.device_of(q):
        _attend_backward[grid](
            q, k, v, grad, dq, dk, dv, scale, positions, frames, channels // heads, channels, num_warps=1, **constants
        )
    return dq, dk, dv
