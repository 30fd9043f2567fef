"""Triton kernels of group norm on tokens, and of its gradients; legend and precision as in `forward`.

Forward, x is read twice and y written once: moments of each channel in chunks of tokens; then, small, the moments of
each group and from them two numbers per channel; then y = x * scale + offset. Backward alike: sums of each channel,
four numbers per channel, then one pass. Sums run down a tile's columns in registers and meet only at a chunk's end, in
a fixed order. Programs that run together read neighbouring channels of the same tokens.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from guidedcd.acceleration.kernels.launch import Launcher, cdiv, power_of_2

ROWS, COLUMNS = 32, 64
"""A tile of tokens by channels: rows of 128 bytes."""
PROGRAMS = 1056
"""Programs that a reduction is cut into, if it is long enough: eight per multiprocessor of the largest GPUs."""
SUMMED = 16
"""Tokens of a tile where three sums are held."""
TILES = 4
"""Tiles that one program transforms, one below the other."""


@Launcher
@triton.jit
def _moments(X, MOMENTS, L, C, CHUNK, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Mean and sum of squared deviations of each channel in one chunk of tokens."""
    chunk, n = tl.program_id(1), tl.program_id(2).to(tl.int64)
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    valid = c < C
    X += n * L * C
    first = chunk * CHUNK
    last = tl.minimum(first + CHUNK, L)
    # Deviations from the chunk's first token: no cancellation when a channel's mean is far from zero.
    origin = tl.load(X + first * C + c, mask=valid, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    squares = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(first, last, 2 * ROWS):
        for half in tl.static_range(2):
            row = start + half * ROWS + tl.arange(0, ROWS)
            inside = (row < last)[:, None] & valid[None, :]
            x = tl.load(X + row[:, None] * C + c[None, :], mask=inside, other=0.0).to(tl.float32)
            d = tl.where(inside, x - origin[None, :], 0.0)
            total += d
            squares += d * d
    sums = tl.sum(total, axis=0)
    count = (last - first).to(tl.float32)
    at = (n * tl.num_programs(1) + chunk) * C + c
    step = tl.num_programs(2) * tl.num_programs(1) * C
    tl.store(MOMENTS + at, origin + sums / count, mask=valid)
    tl.store(MOMENTS + step + at, tl.sum(squares, axis=0) - sums * sums / count, mask=valid)


@Launcher
@triton.jit
def _combine(
    MOMENTS, WEIGHT, BIAS, SHIFT, STEP, STATS, PLANES, L, C, G, CHUNK, CHUNKS, eps,
    HAS_SHIFT: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Mean and 1/std of each (n, group), from moments of its channels and chunks; scale and offset of each channel."""
    n, g = tl.program_id(1).to(tl.int64), tl.program_id(0)
    size = C // G
    k, j = tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    c = g * size + j
    valid = j < size
    inside = (k < CHUNKS)[:, None] & valid[None, :]
    at = (n * CHUNKS + k[:, None]) * C + c[None, :]
    rows = tl.num_programs(1)
    mean = tl.load(MOMENTS + at, mask=inside, other=0.0)
    m2 = tl.load(MOMENTS + rows * CHUNKS * C + at, mask=inside, other=0.0)
    shift = tl.zeros((WIDTH,), tl.float32)
    if HAS_SHIFT:
        shift += tl.load(SHIFT + n * STEP + c, mask=valid, other=0.0).to(tl.float32)
        mean += shift[None, :]
    count = tl.where(inside, tl.minimum(CHUNK, L - k * CHUNK)[:, None].to(tl.float32), 0.0)
    whole = size * L * 1.0
    center = tl.sum(tl.sum(mean * count, axis=1), axis=0) / whole
    m2 += count * (mean - center) * (mean - center)
    factor = 1.0 / tl.sqrt(tl.sum(tl.sum(m2, axis=1), axis=0) / whole + eps)
    tl.store(STATS + (n * G + g) * 2, center)
    tl.store(STATS + (n * G + g) * 2 + 1, factor)
    scale = factor * tl.load(WEIGHT + c, mask=valid, other=0.0).to(tl.float32)
    offset = tl.load(BIAS + c, mask=valid, other=0.0).to(tl.float32) - (center - shift) * scale
    tl.store(PLANES + n * C + c, scale, mask=valid)
    tl.store(PLANES + (rows + n) * C + c, offset, mask=valid)


@Launcher
@triton.jit
def _normalise(
    X, Y, PLANES, L, C,
    SILU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(2).to(tl.int64)
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    valid = c < C
    scale = tl.load(PLANES + n * C + c, mask=valid, other=0.0)
    offset = tl.load(PLANES + (tl.num_programs(2) + n) * C + c, mask=valid, other=0.0)
    X += n * L * C
    Y += n * L * C
    for tile in tl.static_range(TILES):
        row = (tl.program_id(1) * TILES + tile) * ROWS + tl.arange(0, ROWS)
        at = row[:, None] * C + c[None, :]
        inside = (row < L)[:, None] & valid[None, :]
        y = tl.load(X + at, mask=inside, other=0.0).to(tl.float32) * scale[None, :] + offset[None, :]
        if SILU:
            y = y / (1.0 + tl.exp(-y))
        tl.store(Y + at, y.to(Y.dtype.element_ty), mask=inside)


def chunks_of(n: int, length: int, columns: int) -> tuple[int, int]:
    """Tokens per chunk and number of chunks, for a reduction over `length` tokens of `n` rows and `columns` tiles."""
    target = min(cdiv(PROGRAMS, n * columns), cdiv(length, 2 * ROWS))
    chunk = cdiv(cdiv(length, target), ROWS) * ROWS
    return chunk, cdiv(length, chunk)


def _blocks(chunks: int, size: int) -> dict[str, int]:
    """The tile that contains all chunks of one group, and the number of warps for it."""
    block, width = power_of_2(chunks), power_of_2(size)
    return {"BLOCK": block, "WIDTH": width, "num_warps": 4 if block * width >= 2048 else 1}


def _step(shift: Tensor | None) -> int:
    """The distance from one row's shift to the next, in elements; 0 for one shift for all rows."""
    return shift.stride(0) if shift is not None and shift.shape[0] > 1 else 0


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
    """Group norm of `x` + `shift`, then SiLU.

    Args:
        x: Tokens (N, L, C).
        weight: (C,).
        bias: (C,).
        groups: Number of channel groups G.
        eps: Added to the variance.
        silu: Whether SiLU follows.
        shift: (N, C), (1, C) or None.
        dtype: Of the result.

    Returns:
        The result (N, L, C), and mean and 1/std of each group, (N, G, 2) float32.
    """
    x = x.contiguous()
    n, length, channels = x.shape
    columns = cdiv(channels, COLUMNS)
    chunk, chunks = chunks_of(n, length, columns)
    moments = torch.empty(2, n, chunks, channels, device=x.device, dtype=torch.float32)
    planes = torch.empty(2, n, channels, device=x.device, dtype=torch.float32)
    stats = torch.empty(n, groups, 2, device=x.device, dtype=torch.float32)
    y = torch.empty(x.shape, device=x.device, dtype=dtype)
    _moments[columns, chunks, n](x, moments, length, channels, chunk, ROWS=ROWS, COLUMNS=COLUMNS)
    _combine[groups, n](
        moments, weight, bias, stats if shift is None else shift, _step(shift), stats, planes,
        length, channels, groups, chunk, chunks, eps, HAS_SHIFT=shift is not None,
        **_blocks(chunks, channels // groups),
    )  # fmt: skip
    _normalise[columns, cdiv(length, TILES * ROWS), n](
        x, y, planes, length, channels, SILU=silu, ROWS=ROWS, COLUMNS=COLUMNS, TILES=TILES
    )
    return y, stats


@Launcher
@triton.jit
def _sums(
    X, GRAD, STATS, WEIGHT, BIAS, SHIFT, STEP, SUMS, L, C, G, CHUNK, N,
    HAS_SHIFT: tl.constexpr, SILU: tl.constexpr, VALUES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums over a chunk of tokens, by channel: of the gradient, of gradient times x, and of x (normalised)."""
    chunk, n = tl.program_id(1), tl.program_id(2).to(tl.int64)
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    valid = c < C
    stats = STATS + (n * G + c // (C // G)) * 2
    center = tl.load(stats, mask=valid, other=0.0)
    factor = tl.load(stats + 1, mask=valid, other=0.0)
    if HAS_SHIFT:
        center -= tl.load(SHIFT + n * STEP + c, mask=valid, other=0.0).to(tl.float32)
    weight = tl.load(WEIGHT + c, mask=valid, other=0.0).to(tl.float32)
    bias = tl.load(BIAS + c, mask=valid, other=0.0).to(tl.float32)
    X += n * L * C
    GRAD += n * L * C
    first = chunk * CHUNK
    last = tl.minimum(first + CHUNK, L)
    ones = tl.zeros((ROWS, COLUMNS), tl.float32)
    products = tl.zeros((ROWS, COLUMNS), tl.float32)
    values = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(first, last, 2 * ROWS):
        for half in tl.static_range(2):
            row = start + half * ROWS + tl.arange(0, ROWS)
            inside = (row < last)[:, None] & valid[None, :]
            at = row[:, None] * C + c[None, :]
            x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
            grad = tl.load(GRAD + at, mask=inside, other=0.0).to(tl.float32)
            x = (x - center[None, :]) * factor[None, :]
            if SILU:
                z = x * weight[None, :] + bias[None, :]
                s = 1.0 / (1.0 + tl.exp(-z))
                grad = grad * s * (1.0 + z * (1.0 - s))
            ones += grad
            products += grad * x
            if VALUES:
                values += tl.where(inside, x, 0.0)
    at = (n * tl.num_programs(1) + chunk) * C + c
    step = N * tl.num_programs(1) * C
    tl.store(SUMS + at, tl.sum(ones, axis=0), mask=valid)
    tl.store(SUMS + step + at, tl.sum(products, axis=0), mask=valid)
    if VALUES:
        tl.store(SUMS + 2 * step + at, tl.sum(values, axis=0), mask=valid)


@Launcher
@triton.jit
def _slopes(
    SUMS, STATS, WEIGHT, BIAS, SHIFT, STEP, PLANES, LEARNED_SUMS, DSHIFT, L, C, G, CHUNKS, N,
    HAS_SHIFT: tl.constexpr, VALUES: tl.constexpr, LEARNED: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Of each (n, channel): scale and offset of the norm, the coefficients of x and 1 in dx, and gradients' parts."""
    n, g = tl.program_id(1).to(tl.int64), tl.program_id(0)
    size = C // G
    k, j = tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    c = g * size + j
    valid = j < size
    inside = (k < CHUNKS)[:, None] & valid[None, :]
    at = (n * CHUNKS + k[:, None]) * C + c[None, :]
    step = N * CHUNKS * C
    ones = tl.sum(tl.load(SUMS + at, mask=inside, other=0.0), axis=0)
    products = tl.sum(tl.load(SUMS + step + at, mask=inside, other=0.0), axis=0)
    weight = tl.load(WEIGHT + c, mask=valid, other=0.0).to(tl.float32)
    center = tl.zeros((WIDTH,), tl.float32) + tl.load(STATS + (n * G + g) * 2)
    factor = tl.load(STATS + (n * G + g) * 2 + 1)
    if HAS_SHIFT:
        center -= tl.load(SHIFT + n * STEP + c, mask=valid, other=0.0).to(tl.float32)
    mean = tl.sum(ones * weight, axis=0) / (size * L * 1.0)
    slope = tl.sum(products * weight, axis=0) / (size * L * 1.0)
    to, plane = n * C + c, N * C
    tl.store(PLANES + to, factor * weight, mask=valid)
    bias = tl.load(BIAS + c, mask=valid, other=0.0).to(tl.float32)
    tl.store(PLANES + plane + to, bias - center * factor * weight, mask=valid)
    tl.store(PLANES + 2 * plane + to, tl.zeros((WIDTH,), tl.float32) - factor * factor * slope, mask=valid)
    tl.store(PLANES + 3 * plane + to, factor * (center * factor * slope - mean), mask=valid)
    if LEARNED:
        tl.store(LEARNED_SUMS + to, products, mask=valid)
        tl.store(LEARNED_SUMS + plane + to, ones, mask=valid)
    if VALUES:
        values = tl.sum(tl.load(SUMS + 2 * step + at, mask=inside, other=0.0), axis=0)
        tl.store(DSHIFT + to, factor * (ones * weight - L * mean - values * slope), mask=valid)


@Launcher
@triton.jit
def _back(
    X, GRAD, DX, PLANES, L, C, N,
    SILU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(2).to(tl.int64)
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    valid = c < C
    plane = N * C
    PLANES += n * C
    scale = tl.load(PLANES + c, mask=valid, other=0.0)
    offset = tl.load(PLANES + plane + c, mask=valid, other=0.0)
    of_x = tl.load(PLANES + 2 * plane + c, mask=valid, other=0.0)
    of_one = tl.load(PLANES + 3 * plane + c, mask=valid, other=0.0)
    X += n * L * C
    GRAD += n * L * C
    DX += n * L * C
    for tile in tl.static_range(TILES):
        row = (tl.program_id(1) * TILES + tile) * ROWS + tl.arange(0, ROWS)
        at = row[:, None] * C + c[None, :]
        inside = (row < L)[:, None] & valid[None, :]
        x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(GRAD + at, mask=inside, other=0.0).to(tl.float32)
        if SILU:
            z = x * scale[None, :] + offset[None, :]
            s = 1.0 / (1.0 + tl.exp(-z))
            grad = grad * s * (1.0 + z * (1.0 - s))
        dx = grad * scale[None, :] + x * of_x[None, :] + of_one[None, :]
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
    learned: bool = True,
    shifted: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of `group_norm`; those of weight, bias and shift in float32.

    Args:
        grad: The gradient of y, (N, L, C).
        x: (N, L, C); with `weight`, `bias`, `groups`, `silu` and `shift` as in `group_norm`.
        stats: Mean and 1/std (N, G, 2), as `group_norm` returns them.
        learned: Whether weight and bias need gradients.
        shifted: Whether the shift needs one.

    Returns:
        The gradients of x (N, L, C), of weight and bias (2, C) or None, and of the shift (N, C) or None.
    """
    grad = grad.contiguous()
    n, length, channels = x.shape
    columns = cdiv(channels, COLUMNS)
    chunk, chunks = chunks_of(n, length, columns)
    values = shifted and shift is not None
    common = (stats, weight, bias, stats if shift is None else shift, _step(shift))
    constants = {"HAS_SHIFT": shift is not None, "VALUES": values}

    def planes(*shape: int) -> Tensor:
        return torch.empty(*shape, device=x.device, dtype=torch.float32)

    sums, coefficients, dx = (
        planes(3 if values else 2, n, chunks, channels),
        planes(4, n, channels),
        torch.empty_like(x),
    )
    parts = planes(2, n, channels) if learned else None
    dshift = planes(n, channels) if values else None
    _sums[columns, chunks, n](
        x, grad, *common, sums, length, channels, groups, chunk, n,
        SILU=silu, ROWS=SUMMED, COLUMNS=COLUMNS, **constants,
    )  # fmt: skip
    _slopes[groups, n](
        sums, *common, coefficients, parts if learned else sums, dshift if values else sums,
        length, channels, groups, chunks, n, LEARNED=learned, **constants, **_blocks(chunks, channels // groups),
    )  # fmt: skip
    _back[columns, cdiv(length, TILES * ROWS), n](
        x, grad, dx, coefficients, length, channels, n, SILU=silu, ROWS=ROWS, COLUMNS=COLUMNS, TILES=TILES
    )
    return dx, None if parts is None else parts.sum(dim=1), dshift
