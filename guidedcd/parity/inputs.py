"""Reading fixtures: names and shapes of everything, values of inputs only."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from guidedcd.data.geometry import Geometry
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError
from guidedcd.models.guidance_inputs import set_fps
from guidedcd.models.student import Student
from guidedcd.models.teachers.latent import LatentTeacher


class Tensors:
    """A safetensors file that gives names and shapes of all tensors, and values only by name."""

    def __init__(self, path: Path) -> None:
        """Open `path`."""
        self.path, self.name = path, path.name
        try:
            self._file = safe_open(path, "pt")
        except (SafetensorError, OSError) as error:
            raise GuidedCDError(f"{path} cannot be read as safetensors: {error}.") from error
        self.keys = tuple(self._file.keys())

    def __contains__(self, key: str) -> bool:
        """Whether there is such a tensor."""
        return key in self.keys

    def __getitem__(self, key: str) -> Tensor:
        """Read one input.

        Raises:
            GuidedCDError: The file has no tensor of this name.
        """
        if key not in self.keys:
            raise GuidedCDError(f"{self.path} has no '{key}', only {', '.join(self.keys)}.")
        return self._file.get_tensor(key)

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of any tensor, without its values."""
        return tuple(self._file.get_slice(key).get_shape())


def files(folder: Path) -> list[Tensors]:
    """The safetensors files directly in `folder`."""
    return [Tensors(path) for path in sorted(folder.glob("*.safetensors"))]


def settings(path: Path) -> dict[str, Any]:
    """A JSON file's object, {} when there is no such file."""
    return read_json(path) if path.is_file() else {}


class TinyUNet:
    """The fixtures' small network, in lvdm layout: config.json, teacher*.safetensors, student_extra.safetensors."""

    def __init__(self, folder: Path) -> None:
        """Read the files."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.config = config.get("teacher", config)
        self.state: dict[str, Tensor] = {}
        for file in files(folder):
            if file.name.startswith("teacher"):
                self.state |= {key: file[key] for key in file.keys}
        extra = [file for file in files(folder) if file.name.startswith("student_extra")]
        self.extra = {key: file[key].float() for file in extra for key in file.keys}

    @classmethod
    def find(cls, folder: Path) -> TinyUNet:
        """The network that a fixture in `folder` uses: in `folder`, beside it, or one or two levels above.

        Raises:
            GuidedCDError: None of these folders has a network.
        """
        folder = folder.resolve()
        above = [folder, *list(folder.parents)[:2]]
        fixtures = Path(os.environ.get("GUIDEDCD_FIXTURES") or Path(__file__).parents[2].parent / "shared" / "fixtures")
        candidates = [child for parent in above for child in (parent, *sorted(parent.glob("*/")))]
        for candidate in [*candidates, fixtures / "method/tiny_unet"]:
            if (candidate / "config.json").is_file() and any(candidate.glob("teacher*.safetensors")):
                return cls(candidate)
        raise GuidedCDError(
            f"{folder} needs the small UNet (config.json and teacher*.safetensors), e.g. in ../tiny_unet."
        )

    def teacher(self, dtype: torch.dtype, fps: int, latent: tuple[int, ...]) -> LatentTeacher:
        """A teacher in `dtype` without VAE and text encoder; its network reads the frame rate at every call.

        Args:
            dtype: Of the network.
            fps: Frames per second.
            latent: Shape of the latents (B, C, F, h, w).
        """
        from guidedcd.models.checkpoints.unet import load_unet

        network = load_unet(self.config, self.state, fps=None, dtype=dtype)
        set_fps(network, fps)
        channels, frames, height, width = latent[-4:]
        geometry = Geometry(frames=frames, height=height * 8, width=width * 8, fps=fps, channels=channels)
        schedule = NoiseSchedule.scaled_linear()
        return LatentTeacher(network=network, vae=None, text=None, schedule=schedule, geometry=geometry)

    def student(self, teacher: LatentTeacher) -> Student:
        """A student with the teacher's weights and the extra projections of its guidance inputs."""
        energies = ("motion",) if "motion_cond_proj.weight" in self.extra else ()
        student = Student(teacher, None, energies).eval()
        student.network.time_embedding.cond_proj.load_state_dict(self.extra)
        return student

    def originals(self, student: Student) -> dict[str, str]:
        """The lvdm keys by the names of the student's parameters."""
        from guidedcd.models.checkpoints.unet import lvdm_name, with_extras

        return lvdm_name(with_extras(self.config, self.all))

    @property
    def all(self) -> Mapping[str, Tensor]:
        """The student's weights under their lvdm keys."""
        return {**self.state, **self.extra}
