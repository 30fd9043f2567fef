"""The oracle: measures the attributes of a video from its pixels. It is never trained, and never used as a reward.

Objects are segmented by hue. Shapes are recognised by matching drawn templates of the measured area. Motion is that of
the centers of mass. Legend: B videos, F frames, P shapes, K = 2 objects at most.
"""

from __future__ import annotations

import math

import attrs
import torch
import torch.nn.functional as nnf
from torch import Tensor

from guidedcd_shapes import drawing, world
from guidedcd_shapes.world import ORBIT, constant

OTHER = 6
"""Motion class of a path that is neither straight, round nor still."""
ATTRIBUTES = ("color", "shape", "size", "background", "motion", "second")
"""Attributes that `all` requires where they apply; "second" is the presence, colour and shape of the second object."""
FLOOR = 0.2
SPEED_LIMITS = (1.3, 2.4)
TILTS = (0.0, -0.22, 0.22, -0.44, 0.44)
"""Rotations of the templates, in radians."""
ROUND = ("circle", "ring")


@attrs.frozen(kw_only=True, eq=False)
class Measured:
    """One object in every video."""

    color: Tensor
    """(B,), index of world.COLORS."""
    shape: Tensor
    """(B,), index of world.SHAPES."""
    radius: Tensor
    """(B,), pixels."""
    motion: Tensor
    """(B,), index of world.MOTIONS, or OTHER."""
    speed: Tensor
    """(B,), path length per frame, pixels."""
    net: Tensor
    """(B, 2), last position minus first, pixels."""
    center: Tensor
    """(B, F, 2), pixels."""
    present: Tensor
    """(B,), bool: visible in most frames."""
    mass: Tensor
    """(B,), summed chroma."""
    misfit: Tensor
    """(B,), share of the object's energy that the best template does not explain."""

    def where(self, condition: Tensor, other: Measured) -> Measured:
        """This object where `condition` (B,) holds, else the other one."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in attrs.fields(Measured)}
        return Measured(
            **{k: torch.where(condition.view(-1, *[1] * (a.ndim - 1)), a, b) for k, (a, b) in pairs.items()}
        )


def chroma(video: Tensor) -> tuple[Tensor, Tensor]:
    """Two hue axes (..., H, W) of RGB (..., 3, H, W)."""
    red, green, blue = video.unbind(-3)
    return red - 0.5 * (green + blue), (math.sqrt(3) / 2) * (green - blue)


class Oracle:
    """Measures videos (B, F, 3, H, W) in [0, 1] on one device."""

    def __init__(self, device: torch.device | str = "cpu", size: int = world.SIZE) -> None:
        self.device, self.size = torch.device(device), size
        a, b = chroma(torch.tensor(world.RGB, device=device)[..., None, None])
        self.hues = torch.atan2(b, a).flatten()
        self.radii = torch.arange(2.5, 14.01, 0.25, device=device)
        center = torch.full((len(self.radii), 2), size / 2 - 0.3, device=device)
        kinds = range(len(world.SHAPES))
        self.areas = [_soft(drawing.blur(drawing.masks(k, self.radii, center, size))).sum((-1, -2)) for k in kinds]
        self.templates = [(k, tilt) for k in kinds for tilt in TILTS[: 1 if world.SHAPES[k] in ROUND else None]]

    @torch.no_grad()
    def objects(self, video: Tensor) -> tuple[Measured, Measured, Tensor]:
        """The largest object, the second largest, and a mask (B, F, H, W) of pixels far from any object."""
        smooth = drawing.blur(video.float().clamp(0, 1))
        a, b = (x - x.flatten(2).median(-1).values[..., None, None] for x in chroma(smooth))
        magnitude, hue = torch.sqrt(a * a + b * b), torch.atan2(b, a)
        flat = magnitude.flatten(1)
        gate = (0.35 * flat.kthvalue(int(0.995 * flat.shape[1]), dim=1).values).clamp_min(0.12)[:, None, None, None]
        apart = ((hue[:, None] - self.hues.view(1, -1, 1, 1, 1) + math.pi) % (2 * math.pi) - math.pi).abs()
        nearest, strong = apart.argmin(1), magnitude > gate
        mass = torch.stack([(magnitude * strong * (nearest == k)).sum((1, 2, 3)) for k in range(6)], 1)
        objects = []
        for _ in range(2):
            color = mass.argmax(1)
            own = mass.gather(1, color[:, None])[:, 0]
            for neighbour in (-1, 0, 1):  # neighbouring hues belong to the same object
                mass = mass.scatter(1, ((color + neighbour) % 6)[:, None], -1.0)
            cut = magnitude * (apart[torch.arange(len(color), device=self.device), color] < 0.55)
            objects.append(self._measure(cut, strong, color, own))
        halo = nnf.max_pool2d((magnitude > 0.5 * gate).float(), 7, 1, 3)
        return objects[0], objects[1], 1 - halo

    def _measure(self, cut: Tensor, strong: Tensor, color: Tensor, mass: Tensor) -> Measured:
        frames, size = cut.shape[1], cut.shape[-1]
        level = (cut * cut * strong).sum((1, 2, 3)) / (cut * strong).sum((1, 2, 3)).clamp_min(1e-6)
        cover = _soft((cut / (1.04 * level[:, None, None, None].clamp_min(0.02))).clamp(0, 1))
        area = cover.sum((-1, -2))
        grid = torch.arange(size, device=cut.device, dtype=torch.float32)
        x = (cover.sum(-2) * grid).sum(-1) / area.clamp_min(1e-3)
        y = (cover.sum(-1) * grid).sum(-1) / area.clamp_min(1e-3)
        center = torch.stack([x, y], -1)
        energy = cover.square().sum((1, 2, 3)) + 1e-3
        radii = [
            self.radii[torch.searchsorted(areas, area.median(1).values).clamp(0, len(self.radii) - 1)]
            for areas in self.areas
        ]
        errors = []
        for kind, tilt in self.templates:
            template = drawing.masks(kind, radii[kind][:, None].expand(-1, frames), center, size, tilt)
            errors.append((cover - _soft(drawing.blur(template))).square().sum((1, 2, 3)) / energy)
        misfit, best = torch.stack(errors, 1).min(1)
        shape = constant(tuple(kind for kind, _ in self.templates), cut.device, torch.long)[best]
        steps = (center[:, 1:] - center[:, :-1]).norm(dim=-1)
        net, path = center[:, -1] - center[:, 0], steps.sum(1)
        speed = path / (frames - 1)
        return Measured(
            color=color,
            shape=shape,
            radius=torch.stack(radii, 1).gather(1, shape[:, None])[:, 0],
            motion=_motion(center, net, path, speed),
            speed=speed,
            net=net,
            center=center,
            present=((area > 14).float().mean(1) > 0.6) & (mass > 0),
            mass=mass,
            misfit=misfit,
        )

    @torch.no_grad()
    def background(self, video: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        """Index of world.BACKGROUNDS (B,), and mean change of brightness between frames (B,), in the region `free`."""
        light = video.float().clamp(0, 1).mean(2)
        mean = (light * free).sum((-1, -2)) / free.sum((-1, -2)).clamp_min(1)
        flicker = (mean[:, 1:] - mean[:, :-1]).abs().mean(1)
        weight = free.sum(1)
        plate = (light * free).sum(1) / weight.clamp_min(1e-3)
        use = (weight > 0).float() * (1 - drawing.stamp(self.device, self.size))
        count = use.sum((-1, -2)).clamp_min(1)
        level = (plate * use).sum((-1, -2)) / count
        plate = (plate - level[:, None, None]) * use
        amplitude, explained = [], []
        for pattern in drawing.patterns(self.device, self.size):
            centered = (pattern - ((pattern * use).sum((-1, -2)) / count)[:, None, None]) * use
            power = centered.square().sum((-1, -2)).clamp_min(1e-3)
            c = (plate * centered).sum((-1, -2)) / power
            amplitude.append(c.square())
            explained.append(c * c * power)
        pairs = [torch.stack(x, 1).unflatten(1, (3, 2)).sum(-1) for x in (amplitude, explained)]
        best = pairs[1].argmax(1)
        textured = pairs[0].gather(1, best[:, None])[:, 0].sqrt() > 0.09
        plain = torch.where(level > 0.63, 0, torch.where(level < 0.37, 2, 1))
        return torch.where(textured, best.clamp(max=1) + 3, plain), flicker

    @torch.no_grad()
    def score(self, video: Tensor, truth: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compare videos with packed scenes.

        Returns:
            Float tensors (B,), NaN where an attribute does not apply: 1 or 0 for `color`, `shape`, `size`,
            `background`, `motion`, `speed-class`, `second`; `speed` (pixels per frame), `direction` (cosine with the
            true one), `smoothness` of its path, `flicker`, `misfit`; and `all`, the product of ATTRIBUTES that apply.
        """
        first, second, free = self.objects(video)
        background, flicker = self.background(video, free)
        two = truth["objects"] == 2
        both = second.present & (second.mass > 0.2 * first.mass)
        swap = (first.color != truth["color"][:, 0]) & (second.color == truth["color"][:, 0]) & both
        main, rest = second.where(swap, first), first.where(swap, second)
        color = (main.color == truth["color"][:, 0]) & main.present & (two | ~swap)
        size = (main.radius[:, None] - constant(world.RADII, self.device)).abs().argmin(1)
        direction = nnf.cosine_similarity(main.net, constant(world.DIRECTION, self.device)[truth["motion"]], dim=1)
        straight = (truth["motion"] > 0) & (truth["motion"] < ORBIT)
        pace = torch.bucketize(main.speed, constant(SPEED_LIMITS, self.device))
        also = both & (rest.color == truth["color"][:, 1]) & (rest.shape == truth["shape"][:, 1])
        nan = torch.full_like(flicker, float("nan"))
        result = {
            "color": color.float(),
            "shape": ((main.shape == truth["shape"][:, 0]) & main.present).float(),
            "size": ((size == truth["size"][:, 0]) & main.present).float(),
            "background": (background == truth["background"]).float(),
            "motion": ((main.motion == truth["motion"]) & main.present).float(),
            "speed-class": torch.where(
                truth["motion"] > 0, ((pace == truth["speed"]) & (main.motion > 0)).float(), nan
            ),
            "second": torch.where(two, also.float(), nan),
            "direction": torch.where(straight & main.present, direction, nan),
            "speed": torch.where(main.present, main.speed, 0.0),
            "flicker": flicker,
            "misfit": main.misfit,
            "smoothness": torch.where(main.present & (main.motion > 0), smoothness(main.center), nan),
        }
        result["all"] = demand(result, ATTRIBUTES)
        return result


def smoothness(center: Tensor) -> Tensor:
    """How well each step of a path (B, F, 2) follows from the one before (B,), in [0, 1]: their squared coherence.

    It is 1 where one turn and one factor lead from every step to the next, as on a straight line or a circle, and about
    1 / (F - 2) for steps in random directions.
    """
    steps = torch.view_as_complex((center[:, 1:] - center[:, :-1]).contiguous())
    before, after = steps[:, :-1], steps[:, 1:]
    shared = (after * before.conj()).sum(1).abs().square()
    return shared / (before.abs().square().sum(1) * after.abs().square().sum(1)).clamp_min(1e-9)


def demand(result: dict[str, Tensor], attributes: tuple[str, ...]) -> Tensor:
    """(B,): 1 if all of `attributes` that apply are right, else 0."""
    return torch.stack([result[name].nan_to_num(1.0) for name in attributes]).amin(0)


def summarise(result: dict[str, Tensor]) -> dict[str, float]:
    """Means over the videos to which each measurement applies, rounded to 4 digits."""
    values = {name: value[~value.isnan()] for name, value in result.items()}
    return {name: round(value.float().mean().item(), 4) for name, value in values.items() if value.numel()}


def _soft(cover: Tensor) -> Tensor:
    return ((cover - FLOOR) / (1 - FLOOR)).clamp(0, 1)


def _motion(center: Tensor, net: Tensor, path: Tensor, speed: Tensor) -> Tensor:
    spread = center - center.mean(1, keepdim=True)
    xx, yy = spread.square().sum(1).unbind(-1)
    xy = spread.prod(-1).sum(1)
    root = torch.sqrt((xx - yy).square() / 4 + xy.square())
    round_ = ((xx + yy) / 2 - root) > 0.16 * ((xx + yy) / 2 + root)  # ratio of the path's axes above 0.4
    quadrant = torch.round(torch.atan2(net[:, 1], net[:, 0]) / (math.pi / 2)).long() % 4
    line = constant((2, 4, 1, 3), center.device, torch.long)[quadrant]  # 0 right, 1 down, 2 left, 3 up
    motion = torch.where(net.norm(dim=-1) > 0.7 * path, line, torch.where(round_, ORBIT, OTHER))
    return torch.where(speed < 0.35, 0, motion)
