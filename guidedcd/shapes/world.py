"""The world: scenes of one or two moving shapes, drawn as short videos, clean or degraded like scraped web video.

Everything is vectorised over scenes and runs on any device without copies from the host.
Legend: B scenes, F frames, H = W = SIZE pixels. Pixel coordinates: x to the right, y down.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import cache

import attrs
import torch
import torch.nn.functional as nnf
from torch import Tensor

FRAMES, SIZE = 8, 48
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
COLORS = ("red", "yellow", "green", "cyan", "blue", "pink")
SIZES = ("small", "large")
MOTIONS = ("still", "left", "right", "up", "down", "orbit")
SPEEDS = ("slow", "medium", "fast")
BACKGROUNDS = ("light", "gray", "dark", "gradient", "striped")
RELATIONS = ("beside", "above")
STILL, ORBIT = 0, 5

RGB = (
    (0.90, 0.12, 0.12),
    (0.95, 0.90, 0.10),
    (0.10, 0.72, 0.20),
    (0.10, 0.80, 0.85),
    (0.15, 0.28, 0.95),
    (0.95, 0.20, 0.80),
)
RADII = (6.5, 9.5)
VELOCITY = (0.8, 1.8, 3.0)
"""Pixels per frame, by speed."""
DIRECTION = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1), (0, 0))
LEVEL, AMPLITUDE = (0.86, 0.5, 0.13, 0.5, 0.5), (0, 0, 0, 0.5, 0.4)
SWEEP = 5.5
"""Radians that an orbiting shape covers in a clip."""
UNSEEN = frozenset((c, (c + 2) % 6) for c in range(6))
"""(colour, shape) pairs that no caption or video of the teacher's training contains."""

BIASES = {  # share of still scenes, weights of slow, medium and fast
    "pretrain": (0.30, (0.50, 0.32, 0.18)),
    "dynamic": (0.0, (0.05, 0.35, 0.60)),
    "uniform": (0.08, (1, 1, 1)),
}


@attrs.frozen(kw_only=True)
class Scene:
    """Ground truth of one video; integers index the names above, pairs hold the first and the second object."""

    objects: int
    shape: tuple[int, int]
    color: tuple[int, int]
    size: tuple[int, int]
    background: int
    motion: int
    """Of the first object; the second one rests."""
    speed: int
    relation: int
    """Where the first object is, seen from the second."""


@cache
def constant(values: tuple, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tuple as a tensor on `device`, made once, so that drawing never copies from the host."""
    return torch.tensor(values, device=device, dtype=dtype)


def sample_scene(rng: random.Random, bias: str = "pretrain", two: float = 0.2, unseen: bool | None = False) -> Scene:
    """Draw a scene.

    Args:
        rng: Source of randomness.
        bias: How fast things move, a key of BIASES.
        two: Share of scenes with two objects; those are small and move across the line between them.
        unseen: Whether the first object is one of the UNSEEN pairs; None does not care. The second one never is,
            unless None.
    """
    color = rng.randrange(6)
    colors = color, rng.choice([k for k in range(6) if min((k - color) % 6, (color - k) % 6) >= 2])

    def shape(c: int, wanted: bool | None) -> int:
        return rng.choice([s for s in range(6) if wanted is None or ((c, s) in UNSEEN) == wanted])

    shapes = shape(colors[0], unseen), shape(colors[1], None if unseen is None else False)
    objects = 2 if rng.random() < two else 1
    relation, sizes = rng.randrange(2), (rng.randrange(2), rng.randrange(2))
    p_still, p_speed = BIASES[bias]
    moves = [1, 2, 3, 4, 5] if objects == 1 else ([3, 4] if relation == 0 else [1, 2])
    motion = STILL if rng.random() < p_still else rng.choice(moves)
    speed = rng.choices([0, 1, 2], p_speed)[0]
    if motion == ORBIT and speed == 0:
        speed = rng.choice([1, 2])
    return Scene(
        objects=objects,
        shape=shapes,
        color=colors,
        size=sizes if objects == 1 else (0, 0),
        background=rng.randrange(5),
        motion=motion,
        speed=speed,
        relation=relation,
    )


def pack(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Scenes as int64 tensors by attribute name: (B,), or (B, 2) for shape, color and size."""
    return {field.name: torch.tensor([getattr(s, field.name) for s in scenes]) for field in attrs.fields(Scene)}


def subset(truth: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    """Some of the packed scenes."""
    return {name: value[index] for name, value in truth.items()}


def to(truth: dict[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    """Packed scenes on `device`."""
    return {name: value.to(device) for name, value in truth.items()}


def distances(x: Tensor, y: Tensor, r: Tensor) -> list[Tensor]:
    """Signed distances (negative inside) to every shape of radius `r` centred at the origin, in the order of SHAPES."""
    ax, ay = x.abs(), y.abs()
    rho = torch.sqrt(x * x + y * y + 1e-9)
    k = math.sqrt(3) / 2
    triangle = torch.maximum(torch.maximum(k * x - 0.5 * y, -k * x - 0.5 * y), y) - 0.68 * r
    arc = 2 * math.pi / 5
    theta = torch.remainder(torch.atan2(x, -y) + arc / 2, arc) - arc / 2
    tip, notch = 1.42 * r, 0.46
    ex, ey = notch * math.cos(arc / 2) - 1, notch * math.sin(arc / 2)
    star = ((rho * theta.cos() - tip) * ey - rho * theta.sin().abs() * ex) / math.hypot(ex, ey)
    ring = (rho - 0.8 * r).abs() - 0.28 * r
    long, wide = 1.15 * r, 0.36 * r
    cross = torch.minimum(torch.maximum(ax - long, ay - wide), torch.maximum(ax - wide, ay - long))
    return [rho - r, torch.maximum(ax, ay) - 0.89 * r, triangle, star, ring, cross]


def masks(shape: Tensor, r: Tensor, center: Tensor, size: int = SIZE) -> Tensor:
    """Coverage (..., size, size) in [0, 1] of shapes (...) with radii (...) at centers (..., 2), in pixels."""
    grid = torch.arange(size, device=center.device, dtype=center.dtype)
    x = grid - center[..., 0, None, None]
    y = grid[:, None] - center[..., 1, None, None]
    x, y = torch.broadcast_tensors(x, y)
    chosen = torch.zeros_like(x)
    for i, distance in enumerate(distances(x, y, r[..., None, None])):
        chosen = torch.where((shape == i)[..., None, None], distance, chosen)
    return (0.5 - chosen).clamp(0, 1)


@cache
def patterns(device: torch.device, size: int = SIZE) -> Tensor:
    """Zero-mean textures (2, size, size) in [-0.5, 0.5]: a vertical gradient and vertical stripes."""
    grid = torch.arange(size, device=device, dtype=torch.float32)
    gradient = (grid / (size - 1) - 0.5)[:, None].expand(size, size)
    stripes = 0.5 * torch.cos(2 * math.pi * (grid + 0.5) * 4 / size).expand(size, size)
    return torch.stack([gradient, stripes])


def trajectories(truth: dict[str, Tensor], generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Centers (B, 2, F, 2) and radii (B, 2) of both objects, in pixels; the second one rests."""
    device, b = truth["objects"].device, truth["objects"].shape[0]

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, device=device, generator=generator)

    r = constant(RADII, device)[truth["size"]] * (1 + 0.06 * (rand(b, 2) * 2 - 1))
    path = constant(VELOCITY, device)[truth["speed"]] * (1 + 0.1 * (rand(b) * 2 - 1)) * (FRAMES - 1)
    time = torch.linspace(0, 1, FRAMES, device=device)
    line = constant(DIRECTION, device)[truth["motion"]][:, None] * (path[:, None] * time)[..., None]
    angle = rand(b, 1) * 2 * math.pi + SWEEP * time
    orbit = (path / SWEEP)[:, None, None] * torch.stack([angle.cos(), angle.sin()], -1)
    offset = torch.where((truth["motion"] == ORBIT)[:, None, None], orbit, line)
    margin = (r[:, :1] * 1.22 + 0.5).expand(b, 2)
    low, high = margin - offset.amin(1), SIZE - 1 - margin - offset.amax(1)
    start = torch.where(high < low, (low + high) / 2, low + (high - low) * rand(b, 2))
    # two objects: the first in the left or upper half, the second in the other one
    axis = nnf.one_hot(truth["relation"], 2).bool()
    quarter = SIZE / 4
    first = quarter + (rand(b) * 2 - 1) * 2
    second = SIZE - 1 - quarter + (rand(b) * 2 - 1) * 2
    free = margin[:, 0] + (SIZE - 1 - 2 * margin[:, 0]) * rand(b)
    two = (truth["objects"] == 2)[:, None]
    start = torch.where(two & axis, first[:, None], start)
    rest = torch.where(axis, second[:, None], free[:, None])
    return torch.stack([start[:, None] + offset, rest[:, None].expand(b, FRAMES, 2)], 1), r


def render(truth: dict[str, Tensor], web: bool | Tensor = False, generator: torch.Generator | None = None) -> Tensor:
    """Draw packed scenes.

    Args:
        truth: Packed scenes on the wanted device.
        web: Degrade all (True), none (False), or those marked in a bool tensor (B,).
        generator: On the same device.

    Returns:
        Videos (B, F, 3, H, W), float32 in [0, 1].
    """
    device, b = truth["objects"].device, truth["objects"].shape[0]

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, device=device, generator=generator)

    center, r = trajectories(truth, generator)
    cover = masks(truth["shape"][:, :, None].expand(b, 2, FRAMES), r[:, :, None].expand(b, 2, FRAMES), center)
    cover = (
        cover * torch.stack([torch.ones(b, device=device), (truth["objects"] == 2).float()], 1)[:, :, None, None, None]
    )
    background = truth["background"]
    level = constant(LEVEL, device)[background] + 0.05 * (rand(b) * 2 - 1)
    amplitude = constant(AMPLITUDE, device)[background] * (1 + 0.1 * (rand(b) * 2 - 1))
    amplitude = amplitude * torch.where(rand(b) < 0.5, -1.0, 1.0)
    plate = level[:, None, None] + amplitude[:, None, None] * patterns(device)[(background - 3).clamp_min(0)]
    tint = 0.03 * (rand(b, 3) * 2 - 1)
    video = (plate[:, None] + tint[:, :, None, None])[:, None]
    color = (constant(RGB, device)[truth["color"]] + 0.03 * (rand(b, 2, 3) * 2 - 1)).clamp(0, 1)
    for i in (0, 1):
        alpha = cover[:, i, :, None]
        video = video * (1 - alpha) + color[:, i, None, :, None, None] * alpha
    if web is not False:
        worse = degrade(video, generator=generator)
        video = worse if web is True else torch.where(web[:, None, None, None, None], worse, video)
    return video.clamp(0, 1)


@cache
def stamp(device: torch.device, size: int = SIZE) -> Tensor:
    """The web set's pale mark in the lower right corner, (size, size) in [0, 1]."""
    mark = torch.zeros(size, size, device=device)
    mark[size - 7 : size - 3, size - 16 : size - 3] = 1.0
    mark[size - 6 : size - 4, size - 14 : size - 5 : 3] = 0.2
    return mark


def degrade(video: Tensor, strength: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Low contrast, blur, flicker, sensor noise and a stamp, of `strength` (B,), by default drawn from [0.35, 1]."""
    b, f, c, h, w = video.shape
    device = video.device

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, device=device, generator=generator)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=generator)

    s = (0.35 + 0.65 * rand(b) if strength is None else strength).view(b, 1, 1, 1, 1)
    video = video + s * (blur(video) - video)
    video = 0.5 + (1 - 0.45 * s) * (video - 0.5)
    video = video + 0.05 * s * randn(b, f, 1, 1, 1) + 0.05 * s * randn(b, f, c, h, w)
    alpha = 0.55 * stamp(device, h) * s * (rand(b) < 0.6).float().view(b, 1, 1, 1, 1)
    return (video * (1 - alpha) + 0.92 * alpha).clamp(0, 1)


def blur(images: Tensor) -> Tensor:
    """3 x 3 box blur of (..., H, W), edges replicated."""
    flat = images.reshape(-1, 1, *images.shape[-2:])
    return nnf.avg_pool2d(nnf.pad(flat, (1, 1, 1, 1), mode="replicate"), 3, 1).view_as(images)
