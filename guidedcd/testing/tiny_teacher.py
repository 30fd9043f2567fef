"""A small teacher for tests: stock diffusers classes with random weights, which take milliseconds on a CPU."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from guidedcd.data.geometry import Geometry
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.models.teachers.latent import LatentTeacher
from guidedcd.models.teachers.protocol import Cond
from guidedcd.testing.tiny_networks import tiny_unet, tiny_vae

WIDTH = 16
"""Width of the text embedding."""


def tiny_teacher(*, frames: int = 5, prediction: str = "eps", seed: int = 0) -> LatentTeacher:
    """A `UNet3DConditionModel`, an `AutoencoderKL` and hashed words, on the CPU, float32.

    Args:
        frames: Frames per video. Pixels are 16 x 12, latents 8 x 6.
        prediction: "eps" or "v".
        seed: Seed of the weights; torch's global random state does not change.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, vae = tiny_unet(cross_attention_dim=WIDTH), tiny_vae()
    return LatentTeacher(
        network=network,
        vae=vae,
        text=hashed_words,
        schedule=NoiseSchedule(torch.linspace(0.9999, 0.005, 1000), prediction),
        geometry=Geometry(frames=frames, height=16, width=12, fps=8, compression=2),
    )


def hashed_words(captions: Sequence[str], length: int = 8) -> Cond:
    """Encode each word as a fixed random vector, the same in every process: {"prompt_embeds": (B, length, WIDTH)}."""
    return {"prompt_embeds": torch.stack([_words(caption.split()[:length], length) for caption in captions])}


def _words(words: Sequence[str], length: int) -> Tensor:
    rows = [
        torch.randn(WIDTH, generator=torch.Generator().manual_seed(zlib.crc32(word.encode())))
        for word in [*words, *[""] * (length - len(words))]
    ]
    return torch.stack(rows)
