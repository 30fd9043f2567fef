"""Clips of moving shapes, drawn on demand: clip i of a seed is always the same."""

from __future__ import annotations

import random
from collections.abc import Sequence

import attrs
import torch
import torch.nn.functional as nnf
from torch import Tensor

from guidedcd.data.clips import Clip, clip_of
from guidedcd.data.geometry import Geometry
from guidedcd.data.lazy_sequence import LazySequence
from guidedcd.data.routing import Sample
from guidedcd_shapes import ShapesDataConfig, captions, drawing, models, world


class Shapes:
    """The dataset `shapes`."""

    def __init__(self, config: ShapesDataConfig) -> None:
        """Keep the config."""
        self.config = config

    def open(self, geometry: Geometry) -> Sequence[Clip]:
        """All clips in the teacher's size, each drawn when it is read."""
        return Clips(self.config, geometry)


class Clips(LazySequence[Clip]):
    """The clips of one config and geometry."""

    def __init__(self, config: ShapesDataConfig, geometry: Geometry) -> None:
        """Keep the options; nothing is drawn yet."""
        self.config, self.geometry = config, geometry

    def __len__(self) -> int:
        """Number of clips."""
        return self.config.size

    def read(self, index: int) -> Clip:
        """Draw clip `index`."""
        sample, scene, seed = self._described(index)
        generator = torch.Generator().manual_seed(seed)
        video = drawing.render(world.pack([scene]), sample.tags["set"] == "web", generator, models.variety())[0]
        return clip_of(sample, fit(video, self.geometry))

    def sample(self, index: int) -> Sample:
        """The metadata of clip `index`, which is not drawn."""
        return self._described(index)[0]

    def _described(self, index: int) -> tuple[Sample, world.Scene, int]:
        """The metadata of clip `index`, its scene, and the seed of its picture."""
        config = self.config
        kind = ("web", "web", "web", "dense")[index % 4] if config.set == "mix" else config.set
        rng = random.Random(f"clip {config.seed} {kind} {config.motion} {index}")
        scene = world.sample_scene(rng, config.motion, unseen=None)  # clips also show pairs that the teacher never saw
        seed = rng.getrandbits(62)
        caption = (captions.short_caption if kind == "web" else captions.dense_caption)(scene, rng)
        sample = Sample(
            id=f"{kind}-{config.seed}-{index:06d}",
            dataset="shapes",
            caption=caption,
            short_caption=caption if kind == "web" else None,
            tags={"set": kind, "scene": attrs.asdict(scene)},
            motion=0.0 if scene.motion == world.STILL else world.VELOCITY[scene.speed],
        )
        return sample, scene, seed


def fit(video: Tensor, geometry: Geometry) -> Tensor:
    """A video (F, 3, H, W) in another teacher's size: frames by the nearest time, pixels bilinearly."""
    if video.shape[0] != geometry.frames:
        video = video[torch.linspace(0, len(video) - 1, geometry.frames).round().long()]
    if video.shape[-2:] != (geometry.height, geometry.width):
        video = nnf.interpolate(video, (geometry.height, geometry.width), mode="bilinear", antialias=True)
    return video
