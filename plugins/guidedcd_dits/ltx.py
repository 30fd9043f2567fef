"""LTX-Video: a flow-matching transformer of packed tokens, with a shift that depends on their number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy
from torch import Tensor

from guidedcd.acceleration.precision import computing_dtype
from guidedcd.data.geometry import Geometry
from guidedcd.devices import dtype_of
from guidedcd.errors import GuidedCDError
from guidedcd.models.teachers.protocol import Cond
from guidedcd.models.teachers.scheduler_sampler import SchedulerSampler
from guidedcd.models.teachers.transformer import TransformerTeacher, channels
from guidedcd_dits import LTXConfig
from guidedcd_dits.folder import PipelineFolder
from guidedcd_dits.lora_files import LoraTeacher
from guidedcd_dits.sizes import Sizes
from guidedcd_dits.text import MaskedText

USUAL = (161, 512, 704)
"""Frames, height and width of `LTXPipeline`."""
SHIFT = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
"""The pipeline's defaults for the shift by number of tokens."""


class LTXTeacher(LoraTeacher, TransformerTeacher):
    """LTX-Video 0.9; latents are (B, C, F, h, w) here and tokens (B, F h w, C) in the network."""

    text: MaskedText
    lora_pipeline = "LTXPipeline"
    time_embedding = "time_embed.emb.timestep_embedder"
    blocks = ("LTXVideoTransformerBlock",)
    decoder_layers = ("RMSNorm",)
    decoder_blocks = ("LTXVideoMidBlock3d", "LTXVideoUpBlock3d")

    @property
    def causal(self) -> bool:
        """Whether the decoder is causal; those of the published models are not."""
        return bool(self._autoencoder.config.decoder_causal)

    @property
    def noise_shift(self) -> float:
        """The shift of the noise levels, for the teacher's size if it depends on that; without `shift_terminal`."""
        config = self.scheduler.config
        if not config.get("use_dynamic_shifting"):
            return super().noise_shift
        shift = mu(self.scheduler, self.geometry)
        return shift if config.get("time_shift_type") == "linear" else math.exp(shift)

    def normalized(self, z: Tensor) -> Tensor:
        """(z - mean) scale / std by channel."""
        vae = self._autoencoder
        return (z - channels(vae.latents_mean, z)) * vae.config.scaling_factor / channels(vae.latents_std, z)

    def denormalized(self, z: Tensor) -> Tensor:
        """z std / scale + mean by channel."""
        vae = self._autoencoder
        return z * channels(vae.latents_std, z) / vae.config.scaling_factor + channels(vae.latents_mean, z)

    def predict(self, network: Any, z: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """The velocity, like `z`."""
        frames, height, width = z.shape[2:]
        geometry = self.geometry
        output: Tensor = network(
            hidden_states=pack(z),
            encoder_hidden_states=cond["prompt_embeds"].to(computing_dtype(network)),
            timestep=time,
            encoder_attention_mask=cond["prompt_mask"],
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(
                geometry.temporal_compression / geometry.fps,
                geometry.compression,
                geometry.compression,
            ),
            return_dict=False,
        )[0]
        return unpack(output, (frames, height, width))

    def conditioning(self, prompt_embeds: Sequence[Tensor]) -> Cond:
        """Conditioning of captions whose own tokens were embedded already (L_i, D) each."""
        return self.text.conditioning(prompt_embeds)

    def sampler(self, steps: int) -> SchedulerSampler:
        """The scheduler of `LTXPipeline` with `steps` steps."""
        options = {"sigmas": numpy.linspace(1.0, 1 / steps, steps), "mu": mu(self.scheduler, self.geometry)}
        return SchedulerSampler(self.scheduler, steps, self.device, options)

    def _decoded(self, latents: Tensor) -> Tensor:
        """Pixels; an autoencoder that decodes at a noise level does so at 0, as the pipeline does by default."""
        vae = self._autoencoder
        clean = latents.new_zeros(len(latents)) if vae.config.timestep_conditioning else None
        pixels: Tensor = vae.decode(latents, clean, return_dict=False)[0]
        return pixels


def pack(z: Tensor) -> Tensor:
    """Tokens (B, F h w, C) of latents (B, C, F, h, w)."""
    # Of a tensor that is not contiguous, torch's linear layer rounds differently if its weights require a gradient: a
    # student would not equal its teacher bit for bit.
    return z.flatten(2).transpose(1, 2).contiguous()


def unpack(tokens: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The inverse of `pack`, for latents of `shape` (F, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, shape)


def mu(scheduler: Any, geometry: Geometry) -> float:
    """The shift of the noise levels for videos of a size, by the number of their latent positions."""
    positions = geometry.latent_frames * (geometry.height // geometry.compression)
    positions *= geometry.width // geometry.compression
    few, many, low, high = (scheduler.config.get(name, usual) for name, usual in SHIFT.items())
    slope = (high - low) / (many - few)
    return float(positions * slope + (low - slope * few))


def ltx(config: LTXConfig, *, weights: bool = True) -> LTXTeacher:
    """Read a folder of an `LTXPipeline`; without weights its shapes alone.

    Raises:
        GuidedCDError: The folder is missing or of another family, or the size does not fit.
    """
    parts = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    folder = PipelineFolder.open(config.path, "LTXPipeline", parts, dtype=dtype_of(config.dtype), weights=weights)
    network = folder.model("transformer", "LTXVideoTransformer3DModel")
    vae = folder.model("vae", "AutoencoderKLLTXVideo")
    for key in ("patch_size", "patch_size_t"):
        if network.config[key] != 1:
            raise folder.refused("transformer", key, network.config[key], "1, the only one that LTXPipeline samples")
    folder.number("vae", vae.config, "scaling_factor", above=0)
    sizes = Sizes(
        teacher="ltx",
        channels=vae.config.latent_channels,
        temporal=int(vae.temporal_compression_ratio),
        spatial=int(vae.spatial_compression_ratio),
        patch=(1, 1, 1),
        usual=USUAL,
    )
    geometry = sizes.geometry(config, config.fps)
    scheduler = folder.scheduler()
    values = {**SHIFT, **scheduler.config}
    few, many, *_ = [folder.number("scheduler", values, key) for key in SHIFT]
    if few == many:
        raise folder.refused("scheduler", "max_image_seq_len", many, "another number than base_image_seq_len")
    schedule = folder.schedule(scheduler, mu(scheduler, geometry))
    if schedule.prediction != "flow":
        raise GuidedCDError(
            f"ltx: the scheduler {type(scheduler).__name__} of {folder.folder} is none of a flow model; LTX-Video has "
            "FlowMatchEulerDiscreteScheduler."
        )
    return LTXTeacher(
        network=network,
        vae=vae,
        text=MaskedText(folder.text_encoder(), folder.tokenizer(), config.text_length),
        schedule=schedule,
        geometry=geometry,
        scheduler=scheduler,
        decode=config.decode,
    )
