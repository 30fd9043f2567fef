"""Wan 2.1 T2V 1.3B's networks with random weights, and runs, batches and clips for `video_transformers.py`.

The sizes are the published ones. Weights are drawn on the device, all of them non-zero: time and memory do not depend
on their values. There is no text encoder: captions have random embeddings of the published shape.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import attrs
import harness  # noqa: F401  first: it finds guidedcd where that is not installed
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from guidedcd_dits.wan import WanTeacher
from torch import Tensor

from guidedcd.acceleration.precision import cast
from guidedcd.config.kinds import Chosen
from guidedcd.config.run import Run
from guidedcd.config.sections import Preprocess, Solver, Student, Train
from guidedcd.data.clips import Clip
from guidedcd.data.geometry import Geometry
from guidedcd.data.routing import Route, Sample
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.plugins.configs import DatasetConfig, RewardConfig, TeacherConfig
from guidedcd.training.batches import Batch

SIZES = {"small": (33, 256, 448), "large": (81, 480, 832)}
"""Frames, height and width, by the word of the rows' names."""
TINY_SIZES = {"small": (9, 32, 32), "large": (13, 32, 48)}
NETWORK = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30, "text_dim": 4096}
TINY_NETWORK = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "ffn_dim": 32,
    "num_layers": 2,
    "text_dim": 16,
    "freq_dim": 32,
}
TINY_VAE = {"base_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
TOKENS, CAPTION_TOKENS = 512, 60
"""Tokens of an embedding, and those that a usual caption fills; the others are zeros."""
CAPTION = "a red panda eats bamboo in a snowy forest"
STEPS = 50
"""Points of the solver's grid."""


def geometry(size: str, tiny: bool) -> Geometry:
    """The shape of videos of the size `small` or `large`."""
    frames, height, width = (TINY_SIZES if tiny else SIZES)[size]
    return Geometry(frames=frames, height=height, width=width, fps=16, channels=16, temporal_compression=4)


def text_width(tiny: bool) -> int:
    """Width of the prompt embeddings."""
    return TINY_NETWORK["text_dim"] if tiny else NETWORK["text_dim"]


def network(device: str | torch.device, dtype: torch.dtype, tiny: bool = False) -> WanTransformer3DModel:
    """The denoiser, 1.42 B parameters, with the layers that its class keeps in float32."""
    torch.manual_seed(0)
    with torch.device(device):
        model = WanTransformer3DModel(**(TINY_NETWORK if tiny else NETWORK))
    cast(model, dtype)
    return model.requires_grad_(False).eval()


def vae(device: str | torch.device, dtype: torch.dtype, tiny: bool = False) -> AutoencoderKLWan:
    """The autoencoder, 127 M parameters."""
    torch.manual_seed(1)
    with torch.device(device):
        model = AutoencoderKLWan(**(TINY_VAE if tiny else {}))
    return torch.nn.Module.to(model, dtype).requires_grad_(False).eval()


@attrs.frozen
class RandomText:
    """A text encoder without weights: every caption has the same embedding, in the device's memory."""

    embedding: Tensor
    """(1, 512, width), zeros after the tokens of a caption."""

    def __call__(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """{"prompt_embeds": (B, 512, width)}."""
        return {"prompt_embeds": self.embedding.expand(len(captions), -1, -1)}


@functools.cache
def prompt(batch: int, device: str | torch.device, tiny: bool) -> Tensor:
    """Random prompt embeddings (B, 512, width)."""
    generator = torch.Generator().manual_seed(7)
    values = torch.randn(batch, TOKENS, text_width(tiny), generator=generator)
    values[:, CAPTION_TOKENS:] = 0
    return values.to(device)


def teacher(
    device: str | torch.device,
    dtype: torch.dtype,
    size: str,
    tiny: bool = False,
    *,
    decoder: torch.dtype | None = None,
    decode: str = "full",
) -> WanTeacher:
    """The denoiser, the autoencoder in the dtype `decoder`, and random text; rewards see what `decode` decodes."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    model = WanTeacher(
        network=network(device, dtype, tiny),
        vae=vae(device, decoder or dtype, tiny),
        text=RandomText(prompt(1, device, tiny)),
        scheduler=scheduler,
        schedule=NoiseSchedule.from_scheduler(scheduler),
        geometry=geometry(size, tiny),
        decode=decode,
    )
    model._digest = "random"  # nothing here reads the fingerprint, and hashing 6 GB takes as long as everything else
    model.schedule.to(torch.device(device))
    return model


def run_of(
    train: Train | None = None,
    student: Student | None = None,
    preprocess: Preprocess | None = None,
    rewards: dict[str, RewardConfig] | None = None,
) -> Run:
    """A run of consistency distillation with the numbers of the profile `wan-1.3b`.

    An energy of the output would change nothing in preprocessing: nothing is stored for it.
    """
    return Run(
        teacher=Chosen("wan", TeacherConfig()),
        data=(Chosen("random", DatasetConfig()),),
        energies={},
        rewards=rewards or {},
        solver=Solver(steps=STEPS),
        student=student or Student(),
        train=train or Train(),
        preprocess=preprocess or Preprocess(),
    )


def clips(count: int, shape: Geometry) -> list[Clip]:
    """Random videos."""
    video = torch.rand(shape.pixel_shape, generator=torch.Generator().manual_seed(0))
    return [Clip(id=f"v/{i}", dataset="v", caption=CAPTION, video=video.roll(i, 0)) for i in range(count)]


@attrs.frozen
class RandomBatches:
    """Batches with random latents and predictions, in the format of a store."""

    size: int
    shape: tuple[int, ...]
    """Of latents."""
    rewards: tuple[str, ...]
    tiny: bool

    def __call__(self, number: int) -> Batch:
        """Batch `number`; the same number gives the same batch."""
        generator = torch.Generator().manual_seed(number)

        def normal() -> Tensor:
            return torch.randn(self.size, *self.shape, generator=generator)

        captions = [f"{CAPTION}, {(number + i) % 3}" for i in range(self.size)]
        return Batch(
            ids=[f"random/{number}#{i}" for i in range(self.size)],
            samples=[Sample(id=str(i), dataset="random", caption=caption) for i, caption in enumerate(captions)],
            routes=[Route(caption=caption, rewards=frozenset(self.rewards)) for caption in captions],
            index=torch.randint(1, STEPS, (self.size,), generator=generator),
            z0=normal(),
            noise=normal(),
            cond={"prompt_embeds": prompt(self.size, "cpu", self.tiny)},
            cond_output=normal(),
            uncond_output=normal(),
            scores={},
            omega=2 + 3 * torch.rand(self.size, generator=generator),
            strengths=torch.zeros(self.size, 0),
        )


def inputs(batch: int, size: str, device: str | torch.device, dtype: torch.dtype, tiny: bool) -> dict[str, Tensor]:
    """The arguments of a forward pass: latents (B, 16, F, h, w), times (B,) and prompt embeddings."""
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(batch, *geometry(size, tiny).latent_shape, generator=generator)
    times = torch.tensor([(499.0 + 200 * row) % 1000 for row in range(batch)])
    return {
        "hidden_states": z.to(device, dtype),
        "timestep": times.to(device),
        "encoder_hidden_states": prompt(batch, device, tiny).to(dtype),
    }
