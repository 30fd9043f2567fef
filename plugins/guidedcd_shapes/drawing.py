"""Drawing scenes as short videos, clean or degraded like scraped web video.

All functions are vectorised over scenes and run on any device without copies from the host.
Legend: B scenes, F frames, H = W = SIZE pixels. Pixel coordinates: x to the right, y down.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as nnf
from torch import Tensor

from guidedcd_shapes import world

PLAIN = world.Variety()


def distance(shape: int, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Signed distance (negative inside) to a shape of radius `r` at the origin; `shape` indexes world.SHAPES."""
    ax, ay = x.abs(), y.abs()
    rho = torch.sqrt(x * x + y * y + 1e-9)
    match world.SHAPES[shape]:
        case "circle":
            return rho - r
        case "square":
            return torch.maximum(ax, ay) - 0.89 * r
        case "triangle":
            k = math.sqrt(3) / 2
            return torch.maximum(torch.maximum(k * x - 0.5 * y, -k * x - 0.5 * y), y) - 0.68 * r
        case "star":
            arc, tip, notch = 2 * math.pi / 5, 1.42 * r, 0.46
            theta = torch.remainder(torch.atan2(x, -y) + arc / 2, arc) - arc / 2
            ex, ey = notch * math.cos(arc / 2) - 1, notch * math.sin(arc / 2)
            return ((rho * theta.cos() - tip) * ey - rho * theta.sin().abs() * ex) / math.hypot(ex, ey)
        case "ring":
            return (rho - 0.8 * r).abs() - 0.28 * r
    long, wide = 1.15 * r, 0.36 * r
    return torch.minimum(torch.maximum(ax - long, ay - wide), torch.maximum(ax - wide, ay - long))


def masks(shape: Tensor | int, r: Tensor, center: Tensor, size: int = world.SIZE, tilt: Tensor | float = 0.0) -> Tensor:
    """Coverage (..., size, size) in [0, 1] of shapes (...) with radii (...) at centers (..., 2), in pixels.

    Args:
        shape: Index of world.SHAPES, one for all shapes or (...).
        r: Radii (...).
        center: Centers (..., 2).
        size: Pixels per side.
        tilt: Clockwise rotation in radians, one for all shapes or (...).
    """
    grid = torch.arange(size, device=center.device, dtype=center.dtype)
    x = grid - center[..., 0, None, None]
    y = grid[:, None] - center[..., 1, None, None]
    x, y = torch.broadcast_tensors(x, y)
    cos: Tensor | float
    sin: Tensor | float
    if isinstance(tilt, Tensor):
        cos, sin = tilt.cos()[..., None, None], tilt.sin()[..., None, None]
    else:
        cos, sin = math.cos(tilt), math.sin(tilt)
    if isinstance(tilt, Tensor) or tilt:
        x, y = cos * x + sin * y, cos * y - sin * x
    r = r[..., None, None]
    if isinstance(shape, int):
        return (0.5 - distance(shape, x, y, r)).clamp(0, 1)
    distances = torch.zeros_like(x)
    for i in range(len(world.SHAPES)):
        distances = torch.where((shape == i)[..., None, None], distance(i, x, y, r), distances)
    return (0.5 - distances).clamp(0, 1)


@cache
def patterns(device: torch.device, size: int = world.SIZE) -> Tensor:
    """Textures (6, size, size) with mean 0 in [-0.5, 0.5]: ramps, then vertical and horizontal stripes, 2 phases."""
    grid = torch.arange(size, device=device, dtype=torch.float32)
    ramp, wave = grid / (size - 1) - 0.5, 2 * math.pi * (grid + 0.5) * 4 / size
    even, odd = 0.5 * wave.cos(), 0.5 * wave.sin()
    across = torch.stack([ramp, even, odd])[:, None].expand(3, size, size)
    down = across.transpose(1, 2)
    return torch.stack([down[0], across[0], across[1], across[2], down[1], down[2]])


def textures(background: Tensor, variety: world.Variety, rand: Callable[..., Tensor]) -> Tensor:
    """Textures (B, H, W) with mean 0 of backgrounds (B,); world.AMPLITUDE scales them, by 0 for plain backgrounds."""
    b, device = len(background), background.device
    gradient = (background == world.BACKGROUNDS.index("gradient"))[:, None]
    if variety.texture:
        angle, level = 2 * math.pi * rand(b, 1), (rand(b, 1) < 0.5).float()
        turn = torch.cat([angle.cos(), angle.sin()], 1)
        slope = turn / turn.abs().sum(1, keepdim=True)
        wave = torch.cat([turn * (1 - level), turn * level], 1)
    else:
        slope = world.constant((1.0, 0.0), device).expand(b, 2)
        wave = world.constant((1.0, 0.0, 0.0, 0.0), device).expand(b, 4)
    weights = torch.cat([slope * gradient, wave * ~gradient], 1)
    return torch.einsum("bk,khw->bhw", weights, patterns(device))


def trajectories(
    truth: dict[str, Tensor], generator: torch.Generator | None = None, variety: world.Variety = PLAIN
) -> tuple[Tensor, Tensor]:
    """Centers (B, 2, F, 2) and radii (B, 2) of both objects, in pixels; the second one rests."""
    device, b = truth["objects"].device, truth["objects"].shape[0]

    rand = partial(torch.rand, device=device, generator=generator)
    r = world.constant(world.RADII, device)[truth["size"]] * (1 + 0.06 * (rand(b, 2) * 2 - 1))
    path = world.constant(world.VELOCITY, device)[truth["speed"]] * (1 + 0.1 * (rand(b) * 2 - 1)) * (world.FRAMES - 1)
    time = torch.linspace(0, 1, world.FRAMES, device=device)
    along, pace = world.constant(world.DIRECTION, device)[truth["motion"]][:, None], time
    if variety.sway:
        pace = time + 0.4 * (rand(b, 1) * 2 - 1) * (time * time - time)
    line = along * (path[:, None] * pace)[..., None]
    if variety.sway:
        line = line + along.flip(-1) * (variety.sway * (rand(b, 1) * 2 - 1) * 4 * (time - time * time))[..., None]
    angle = rand(b, 1) * 2 * math.pi + world.SWEEP * time
    orbit = (path / world.SWEEP)[:, None, None] * torch.stack([angle.cos(), angle.sin()], -1)
    offset = torch.where((truth["motion"] == world.ORBIT)[:, None, None], orbit, line)
    margin = (r[:, :1] * 1.22 + 0.5).expand(b, 2)
    low, high = margin - offset.amin(1), world.SIZE - 1 - margin - offset.amax(1)
    start = torch.where(high < low, (low + high) / 2, low + (high - low) * rand(b, 2))
    # two objects: the first in the left or upper half, the second in the other one
    axis = nnf.one_hot(truth["relation"], 2).bool()
    quarter = world.SIZE / 4
    first = quarter + (rand(b) * 2 - 1) * 2
    second = world.SIZE - 1 - quarter + (rand(b) * 2 - 1) * 2
    free = margin[:, 0] + (world.SIZE - 1 - 2 * margin[:, 0]) * rand(b)
    two = (truth["objects"] == 2)[:, None]
    start = torch.where(two & axis, first[:, None], start)
    rest = torch.where(axis, second[:, None], free[:, None])
    return torch.stack([start[:, None] + offset, rest[:, None].expand(b, world.FRAMES, 2)], 1), r


def render(
    truth: dict[str, Tensor],
    web: bool | Tensor = False,
    generator: torch.Generator | None = None,
    variety: world.Variety = PLAIN,
    path: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Draw packed scenes.

    Args:
        truth: Packed scenes; the videos are drawn on their device.
        web: Which videos to degrade: all (True), none (False), or a bool tensor (B,).
        generator: Source of randomness on the same device.
        variety: Variation that no caption names.
        path: Result of `trajectories`; None computes it.

    Returns:
        Videos (B, F, 3, H, W), float32 in [0, 1].
    """
    device, b = truth["objects"].device, truth["objects"].shape[0]

    rand = partial(torch.rand, device=device, generator=generator)
    center, r = path or trajectories(truth, generator, variety)
    tilt = (rand(b, 2, 1) * 2 - 1).expand(b, 2, world.FRAMES) * math.radians(variety.tilt) if variety.tilt else 0.0
    shape, radius = (x[:, :, None].expand(b, 2, world.FRAMES) for x in (truth["shape"], r))
    cover = masks(shape, radius, center, tilt=tilt)
    cover = (
        cover * torch.stack([torch.ones(b, device=device), (truth["objects"] == 2).float()], 1)[:, :, None, None, None]
    )
    background = truth["background"]
    level = world.constant(world.LEVEL, device)[background] + 0.05 * (rand(b) * 2 - 1)
    amplitude = world.constant(world.AMPLITUDE, device)[background] * (1 + 0.1 * (rand(b) * 2 - 1))
    amplitude = amplitude * torch.where(rand(b) < 0.5, -1.0, 1.0)
    plate = level[:, None, None] + amplitude[:, None, None] * textures(background, variety, rand)
    tint = 0.03 * (rand(b, 3) * 2 - 1)
    video = (plate[:, None] + tint[:, :, None, None])[:, None]
    color = (world.constant(world.RGB, device)[truth["color"]] + 0.03 * (rand(b, 2, 3) * 2 - 1)).clamp(0, 1)
    for i in (0, 1):
        alpha = cover[:, i, :, None]
        video = video * (1 - alpha) + color[:, i, None, :, None, None] * alpha
    if web is not False:
        worse = degrade(video, generator=generator)
        video = worse if web is True else torch.where(web[:, None, None, None, None], worse, video)
    return video.clamp(0, 1)


@cache
def stamp(device: torch.device, size: int = world.SIZE) -> Tensor:
    """The pale watermark of degraded videos in the lower right corner, (size, size) in [0, 1]."""
    mark = torch.zeros(size, size, device=device)
    mark[size - 7 : size - 3, size - 16 : size - 3] = 1.0
    mark[size - 6 : size - 4, size - 14 : size - 5 : 3] = 0.2
    return mark


def degrade(video: Tensor, strength: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Reduce contrast; add blur, flicker, noise and a watermark. `strength` (B,) is drawn from [0.35, 1] by default."""
    b, f, c, h, w = video.shape
    device = video.device

    rand = partial(torch.rand, device=device, generator=generator)
    randn = partial(torch.randn, device=device, generator=generator)
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
