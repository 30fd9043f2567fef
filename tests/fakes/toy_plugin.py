"""A teacher, data set, energy and reward of a few thousand weights, offered like any third party's plugin."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import attrs
import torch

from guidedcd import DatasetConfig, EnergyConfig, RewardConfig, TeacherConfig
from guidedcd.config.resolve import run_from_dict
from guidedcd.config.run import Run
from guidedcd.data.clips import Clip, ClipError
from guidedcd.data.geometry import Geometry
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.models.teachers.latent import LatentTeacher
from guidedcd.testing.tiny_networks import tiny_unet, tiny_vae

PLUGIN = """
from toy_plugin import DatasetConfig, EnergyConfig, RewardConfig, TeacherConfig, ToyData, ToyEnergy
from guidedcd import hookimpl

@hookimpl
def register_teachers(register):
    register("toy", "toy_plugin:teacher", config=TeacherConfig)

@hookimpl
def register_datasets(register):
    register("toy", "toy_plugin:data", config=ToyData)

@hookimpl
def register_energies(register):
    register("toy", "toy_plugin:Energy", config=ToyEnergy)

@hookimpl
def register_rewards(register):
    register("toy", "toy_plugin:Reward", config=RewardConfig)
"""

CONFIG = {
    "teacher": {"toy": {}},
    "data": [{"toy": {}}],
    "energy": {"toy": {"relative": 0.3, "fraction": 0.5}},
    "rewards": {"toy": {"weight": 0.1}},
    "solver": {"steps": 10, "omega": [1.0, 4.0]},
    "preprocess": {"videos": 5, "draws_per_video": 3, "batch_size": 2, "shard_size": 2},
    "train": {
        "steps": 6,
        "batch_size": 2,
        "log_every": 1,
        "optimizer": {"lr": 1e-3},
        "checkpoint": {"every": 2},
    },
    "evaluate": {"prompts": 8, "teacher_steps": 4},
    "device": "cpu",
}


def make(*, replace: Collection[str] = (), **changes: object) -> Run:
    """The toy run with changed sections: options of a section are merged into it, unless it is in `replace`."""
    replaced = changes.keys() & set(replace)
    unchanged = {key: value for key, value in json.loads(json.dumps(CONFIG)).items() if key not in replaced}
    return run_from_dict(_merged(unchanged, changes))


def _merged(below: dict, above: dict) -> dict:
    """Nested options of two descriptions, those of `above` winning."""
    both = {key: _merged(below[key], above[key]) for key in below if isinstance(above.get(key), dict)}
    return {**below, **above, **both}


@attrs.frozen(kw_only=True)
class ToyData(DatasetConfig):
    """Options of the data set."""

    broken: int = 0
    """Every `broken`-th clip cannot be read; 0 means none."""
    folder: Path = Path("clips")
    """Where the clips would be."""


@attrs.frozen(kw_only=True)
class ToyEnergy(EnergyConfig):
    """Options of the energy."""

    power: float = 2.0
    """Of the distance."""


def teacher(config: TeacherConfig) -> LatentTeacher:
    """A random UNet with temporal attention; the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = tiny_unet(sample_size=4, block_out_channels=(8, 16), cross_attention_dim=6, attention_head_dim=4)
        for parameter in network.parameters():
            if not parameter.abs().sum():
                torch.nn.init.normal_(parameter, std=0.05)
        vae = tiny_vae(block_out_channels=(8, 8), sample_size=8)
    return LatentTeacher(
        network=network,
        vae=vae,
        text=_embed,
        schedule=NoiseSchedule.scaled_linear(),
        geometry=Geometry(frames=3, height=8, width=8, fps=8, compression=2),
    )


def _embed(captions):
    rows = [torch.tensor([[float(len(c) % 7), *(float(ord(x)) / 100 for x in (c + "     ")[:5])]]) for c in captions]
    return {"prompt_embeds": torch.stack(rows)}


class data:
    """Random clips with captions of their number."""

    def __init__(self, config: ToyData) -> None:
        self.broken = config.broken

    def open(self, geometry: Geometry):
        self.shape = geometry.pixel_shape
        return self

    def __len__(self) -> int:
        return 50

    def __getitem__(self, number: int) -> Clip:
        if self.broken and number % self.broken == self.broken - 1:
            raise ClipError("the file holds no video stream")
        video = torch.rand(self.shape, generator=torch.Generator().manual_seed(number))
        return Clip(id=f"toy/{number}", dataset="toy", caption=f"clip {number}", video=video, tags={"n": number})


class Energy:
    """Distance of the predicted clean latents from the reference's."""

    needs = ()

    def __init__(self, config: ToyEnergy) -> None:
        self.power = config.power

    def __call__(self, seen, reference):
        return (seen.x0 - reference.x0).abs().pow(self.power).flatten(1).mean(1)


class Reward(torch.nn.Module):
    """Brightness, times a factor that the caption's length gives."""

    max_tokens = 8

    def __init__(self, config: RewardConfig) -> None:
        super().__init__()

    def count_tokens(self, text: str) -> int:
        return len(text)

    def forward(self, video, captions):
        return video.flatten(1).mean(1) * torch.tensor([float(len(c)) for c in captions])
