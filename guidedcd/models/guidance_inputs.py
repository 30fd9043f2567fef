"""Small modules that extend a stock network's time embedding: guidance inputs, and the frame rate.

diffusers' `TimestepEmbedding` has two attributes for those of UNets, so the UNet class itself stays stock:
`cond_proj` is added to the input of the first linear layer, `post_act` is applied to the output of the second.
Other networks pass nothing to `cond_proj`; for them a hook adds a `GuidanceEmbedding` to the embedding's output.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn

from guidedcd.acceleration.cuda_graphs import REPLAYABLE, SideInput

if TYPE_CHECKING:
    from diffusers import UNet3DConditionModel


class GuidanceProjection(nn.Module):
    """Projects the omega and lambda embeddings onto the timestep sinusoid, as T2V-Turbo-v2 does.

    With T = time_cond_proj, M = motion_cond_proj and C = combine_proj, all without bias, the term is
    `T w` with omega only, and `C [T w ; M l]` with lambda as well.
    """

    def __init__(self, channels: int, omega_width: int = 256, lambda_width: int = 0) -> None:
        """Build the projections.

        Args:
            channels: Width of the timestep sinusoid, the UNet's first block width.
            omega_width: Width of the omega embedding.
            lambda_width: Width of the lambda embedding, 256 per energy; 0 builds no lambda input.
        """
        super().__init__()
        self.omega_width, self.lambda_width = omega_width, lambda_width
        self.time_cond_proj = nn.Linear(omega_width, channels, bias=False)
        if lambda_width:
            self.motion_cond_proj = nn.Linear(lambda_width, channels, bias=False)
            self.combine_proj = nn.Linear(2 * channels, channels, bias=False)

    @property
    def outermost(self) -> nn.Linear:
        """The last matrix of the longest path: zero in a fresh student."""
        return self.combine_proj if self.lambda_width else self.time_cond_proj

    def forward(self, cond: Tensor) -> Tensor:
        """The term added to the sinusoid (B, channels), from `cond` (B, omega_width [+ lambda_width])."""
        if cond.shape[1] not in {self.omega_width, self.omega_width + self.lambda_width}:
            raise ValueError(
                f"guidance embedding is {cond.shape[1]} wide; "
                f"this network takes {self.omega_width} or {self.omega_width + self.lambda_width}"
            )
        projected = self.time_cond_proj(cond[:, : self.omega_width])
        if cond.shape[1] == self.omega_width:
            return projected
        motion = self.motion_cond_proj(cond[:, self.omega_width :])
        return self.combine_proj(torch.cat([projected, motion], dim=1))


class GuidanceEmbedding(SideInput):
    """Projects the omega and lambda embeddings onto the output of a time embedding; zero in a fresh student.

    `inputs` are the embeddings (B, inputs) of the present forward pass; None adds nothing.
    """

    def __init__(self, channels: int, width: int) -> None:
        """Build the projection.

        Args:
            channels: Width of the time embedding.
            width: Width of the omega and lambda embeddings together.
        """
        super().__init__()
        self.proj = nn.Linear(width, channels, bias=False)
        nn.init.zeros_(self.proj.weight)

    def term(self, inputs: Tensor) -> Tensor:
        """The guidance (B, channels) of embeddings (B, inputs); without lambdas, their columns do not take part.

        The embeddings are divided by the root of the width. Their numbers are cosines and sines, most of which are the
        same for all samples and act together as one bias. Adam moves each weight by the learning rate, so that without
        the division this bias would move by `width` times the learning rate a step.
        """
        weight = self.proj.weight[:, : inputs.shape[1]]
        return nn.functional.linear(inputs.to(weight.dtype) * self.proj.in_features**-0.5, weight)

    def forward(self, output: Tensor) -> Tensor:
        """The time embedding with the guidance added, like `output`.

        Args:
            output: (B, channels), or with an embedding for each token (B, L, channels) or (B L, channels).
        """
        if self.inputs is None:
            return output
        term = self.term(self.inputs).to(output.dtype)
        if output.dim() == 3:
            return output + term[:, None]
        if output.shape[0] % term.shape[0]:
            raise ValueError(f"{term.shape[0]} guidance embeddings for {output.shape[0]} time embeddings")
        return output + term.repeat_interleave(output.shape[0] // term.shape[0], dim=0)


def add_guidance_embedding(network: nn.Module, path: str, energies: int, width: int = 256) -> GuidanceEmbedding:
    """Add guidance inputs to the output of a network's time embedding, in place.

    Args:
        network: Any denoiser.
        path: Name of its time embedding, a module that returns (..., channels).
        energies: Number of energies E.
        width: Width of the embedding of omega and of each energy's input.
    """
    embedding: Any = network.get_submodule(path)
    last = [module for module in embedding.modules() if hasattr(module, "out_features")][-1]
    guidance = GuidanceEmbedding(last.out_features, width * (1 + energies))
    like = next(embedding.parameters())
    embedding.guidance_embedding = guidance.to(like.device, like.dtype)
    embedding.register_forward_hook(_add_guidance)
    return guidance


def _add_guidance(module: Any, args: Any, output: Tensor) -> Tensor:
    result: Tensor = module.guidance_embedding(output)
    return result


setattr(_add_guidance, REPLAYABLE, True)


@contextlib.contextmanager
def guidance_inputs(network: nn.Module, path: str, inputs: Tensor | None) -> Iterator[None]:
    """Give a network the embeddings (B, 256 (1 + E)) of its guidance in the forward passes inside the block."""
    guidance: Any = network.get_submodule(path).guidance_embedding
    guidance.inputs = inputs
    try:
        yield
    finally:
        guidance.inputs = None


class FpsEmbedding(nn.Module):
    """Adds an embedding of the frame rate to the time embedding; `fps` is set before the forward pass."""

    def __init__(self, channels: int, width: int, fps: int | Tensor = 16) -> None:
        """Build the MLP.

        Args:
            channels: Width of the sinusoid.
            width: Width of the time embedding, 4 times `channels` in VideoCrafter2.
            fps: Frames per second, one int for the batch or a tensor (B,).
        """
        super().__init__()
        self.time_proj = Timesteps(channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.linear_1 = nn.Linear(channels, width)
        self.act = nn.SiLU()
        self.linear_2 = nn.Linear(width, width)
        self.fps = fps

    def embed(self, fps: Tensor) -> Tensor:
        """The frame-rate vector (B, width) of `fps` (B,); the sinusoid is always computed in float32."""
        sinusoid = self.time_proj(fps).to(self.linear_1.weight.dtype)
        return self.linear_2(self.act(self.linear_1(sinusoid)))

    def forward(self, emb: Tensor) -> Tensor:
        """The time embedding (B, width) plus the frame-rate vector."""
        fps = self.fps
        if isinstance(fps, int):
            fps = torch.full((1,), fps, device=emb.device)  # on the device: a copy would wait for the GPU
        fps = torch.as_tensor(fps, device=emb.device).reshape(-1)
        if fps.numel() not in {1, emb.shape[0]}:
            raise ValueError(f"fps holds {fps.numel()} values for a batch of {emb.shape[0]}")
        return emb + self.embed(fps)


def set_fps(unet: UNet3DConditionModel, fps: int | Tensor) -> None:
    """Set the frame rate of a UNet with a live frame-rate input: one int, or a tensor (B,)."""
    embedding = unet.time_embedding.post_act
    if not isinstance(embedding, FpsEmbedding):
        raise ValueError("the frame rate is folded into this UNet's weights; load it with fps=None to keep it an input")
    embedding.fps = fps
