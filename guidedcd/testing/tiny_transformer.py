"""A small video transformer for tests: a stock diffusers class with random weights, in milliseconds on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from guidedcd.acceleration.precision import computing_dtype
from guidedcd.data.geometry import Geometry
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.models.teachers.protocol import Cond
from guidedcd.models.teachers.transformer import TransformerTeacher
from guidedcd.testing.tiny_teacher import WIDTH, hashed_words


class TinyTransformerTeacher(TransformerTeacher):
    """A `WanTransformer3DModel` without an autoencoder."""

    time_embedding = "condition_embedder.time_embedder"
    blocks = ("WanTransformerBlock",)

    def predict(self, network: Any, z: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """The velocity, like `z`."""
        velocity: Tensor = network(z, time, cond["prompt_embeds"].to(computing_dtype(network)), return_dict=False)[0]
        return velocity


def tiny_transformer_teacher(*, latent_frames: int = 3, blocks: int = 3, seed: int = 0) -> TinyTransformerTeacher:
    """A flow model and hashed words, on the CPU, float32.

    Args:
        latent_frames: Latent frames of a video; all but the first are of 4 frames. Each has 3 x 4 tokens.
        blocks: Transformer blocks.
        seed: Seed of the weights; torch's global random state does not change.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=WIDTH,
            freq_dim=32,
            ffn_dim=32,
            num_layers=blocks,
            rope_max_seq_len=32,
        )
        with torch.no_grad():  # attention is nearly uniform with the initial weights
            for name, weight in network.named_parameters():
                if ".attn1.to_" in name and weight.ndim == 2:
                    weight.mul_(3)
    return TinyTransformerTeacher(
        network=network,
        vae=None,
        text=hashed_words,
        schedule=NoiseSchedule.from_scheduler(FlowMatchEulerDiscreteScheduler(shift=3.0)),
        geometry=Geometry(
            frames=4 * latent_frames - 3, height=48, width=64, fps=16, channels=4, compression=8, temporal_compression=4
        ),
    )
