"""Scenes of one or two moving shapes, and the variation between videos of one scene.

Legend: B scenes. Pixel coordinates: x to the right, y down.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import attrs
import torch
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
"""Angle that an orbiting shape covers in a clip, in radians."""
UNSEEN = frozenset({(1, 3), (2, 4), (5, 1)})
"""Pairs (colour, shape) that the teacher's training never shows: yellow star, green ring, pink square."""

BIASES = {  # share of still scenes, weights of slow, medium and fast
    "pretrain": (0.30, (0.50, 0.32, 0.18)),
    "dynamic": (0.0, (0.05, 0.35, 0.60)),
    "uniform": (0.08, (1, 1, 1)),
}


@attrs.frozen(kw_only=True)
class Variety:
    """Variation between videos of one scene that no caption names, besides position, exact size and shade."""

    tilt: float = 0.0
    """Largest rotation of a shape in either direction, in degrees."""
    texture: bool = False
    """Whether gradients have any direction, and stripes are vertical or horizontal with any phase."""
    sway: float = 0.0
    """Largest bend of a straight path, in pixels; the speed along it varies too."""


@attrs.frozen(kw_only=True)
class Scene:
    """Ground truth of one video: indices of the names above; pairs are of the first and the second object."""

    objects: int
    shape: tuple[int, int]
    color: tuple[int, int]
    size: tuple[int, int]
    background: int
    motion: int
    """Motion of the first object; the second one rests."""
    speed: int
    relation: int
    """Position of the first object relative to the second."""


@cache
def constant(values: tuple[Any, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tuple as a tensor on `device`, cached, so that drawing never copies from the host."""
    return torch.tensor(values, device=device, dtype=dtype)


def sample_scene(rng: random.Random, bias: str = "pretrain", two: float = 0.2, unseen: bool | None = False) -> Scene:
    """Draw a scene.

    Args:
        rng: Source of randomness.
        bias: Distribution of speeds, a key of BIASES.
        two: Share of scenes with two objects, which are small; the first moves across the line between them.
        unseen: Whether the first object is one of the UNSEEN pairs; the second is none of them. None allows any pair
            for both.
    """
    pair = rng.choice(sorted(UNSEEN)) if unseen else None
    color = pair[0] if pair else rng.randrange(6)
    colors = color, rng.choice([k for k in range(6) if min((k - color) % 6, (color - k) % 6) >= 2])

    def shape(c: int) -> int:
        return rng.choice([s for s in range(6) if unseen is None or (c, s) not in UNSEEN])

    shapes = (pair[1] if pair else shape(colors[0]), shape(colors[1]))
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
    """The packed scenes at `index`."""
    return {name: value[index] for name, value in truth.items()}


def to(truth: dict[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    """Packed scenes on `device`."""
    return {name: value.to(device) for name, value in truth.items()}
