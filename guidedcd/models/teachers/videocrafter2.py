"""VideoCrafter2 as a teacher, from its published file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidedcd.data.geometry import Geometry
from guidedcd.models.checkpoints import videocrafter2
from guidedcd.models.checkpoints.architecture import Architecture, check_fps
from guidedcd.models.checkpoints.open_clip_tokens import ClipTokens
from guidedcd.models.checkpoints.reading import View, exists, open_state
from guidedcd.models.teachers.latent import LatentTeacher


class VideoCrafter2Teacher(LatentTeacher):
    """A `LatentTeacher` with the data that exports need: the architecture and the folded frame-rate MLP."""

    base_model = "VideoCrafter/VideoCrafter2"
    """The teacher's name in the model card of a student."""

    def __init__(
        self, *, arch: Architecture, path: Path | None, fps: int, fps_weights: dict[str, Tensor], **options: Any
    ) -> None:
        """Set the arguments of a `LatentTeacher` and their origin."""
        super().__init__(**options)
        self.arch, self.path, self.fps, self.fps_weights = arch, path, fps, fps_weights

    def base_state(self) -> View:
        """The UNet's state dict in the file, under its original keys."""
        assert self.path is not None, "this teacher was not read from a file"
        file = exists(self.path, "VideoCrafter2's model.ckpt", videocrafter2.WHERE)
        return videocrafter2.split(open_state(file))["unet"]


def load_videocrafter2(
    path: str | Path,
    *,
    arch: Architecture | str | Path | None = None,
    fps: int = 8,
    frames: int = 16,
    height: int = 320,
    width: int = 512,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> VideoCrafter2Teacher:
    """Read `model.ckpt` as published.

    Args:
        path: The file.
        arch: The architecture or its JSON file; None is VideoCrafter2 as published.
        fps: The network's frame-rate input, whole frames per second, 1 to 1000.
        frames: Frames per video.
        height: Pixels, a multiple of 64 for the published network.
        width: Pixels, likewise.
        dtype: Of all weights.
        device: Of all weights.

    Raises:
        GuidedCDError: The file is missing, damaged or something else, or the size or frame rate is not supported.
    """
    if not isinstance(arch, Architecture):
        arch = Architecture.read(arch)
    fps = check_fps(fps)
    arch.check_size(frames, height, width)
    checkpoint = videocrafter2.load(path, fps=fps, arch=arch, dtype=dtype, device=device)
    path = Path(path).expanduser()
    unet = videocrafter2.split(open_state(path))["unet"]
    fps_weights = {key: unet[key].float().clone() for key in videocrafter2.FPS_KEYS if key in unet}
    return VideoCrafter2Teacher(
        arch=arch,
        path=path,
        fps=fps,
        fps_weights=fps_weights,
        network=checkpoint.unet,
        vae=checkpoint.vae,
        text=ClipTokens(checkpoint.text),
        schedule=checkpoint.schedule,
        geometry=Geometry(
            frames=frames,
            height=height,
            width=width,
            fps=fps,
            channels=arch.embed_dim,
            compression=arch.compression,
        ),
    )
