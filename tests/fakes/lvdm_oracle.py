"""VideoCrafter2's networks, computed straight from a state dict under its original keys: a second opinion for tests.

Which layers exist is read from the keys, so nothing here shares a table with the package. Float64, no modules.
Legend: B batch, C channels, F frames, H/W latent size, N sequences, L their length.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as nnf

State = Mapping[str, Tensor]


def sinusoid(t: Tensor, width: int) -> Tensor:
    """(B,) to (B, width): cosines first, frequencies 1e4^(-i / half), in float32 as the original has it."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    phase = t.float()[:, None] * frequencies[None]
    return torch.cat([phase.cos(), phase.sin()], dim=1).double()


class Oracle:
    """A state dict and the few numbers that its shapes do not tell."""

    def __init__(self, state: State, head: int = 64) -> None:
        """Take the tensors, without prefix, and the width of an attention head."""
        self.state = {key: value.double() for key, value in state.items()}
        self.head = head

    def has(self, key: str) -> bool:
        """Whether there is such a tensor."""
        return key in self.state

    def linear(self, name: str, x: Tensor) -> Tensor:
        """A linear layer, or a 1x1 convolution as one."""
        return nnf.linear(x, self.state[f"{name}.weight"].flatten(1), self.state.get(f"{name}.bias"))

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        """32 groups over all but the first two axes."""
        return nnf.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps)

    def conv(self, name: str, x: Tensor, **options: int | tuple[int, ...]) -> Tensor:
        """A 2-D or 3-D convolution."""
        weight = self.state[f"{name}.weight"]
        return (nnf.conv3d if weight.ndim == 5 else nnf.conv2d)(x, weight, self.state[f"{name}.bias"], **options)

    def mlp(self, name: str, x: Tensor) -> Tensor:
        """Linear, SiLU, linear."""
        return self.linear(f"{name}.2", nnf.silu(self.linear(f"{name}.0", x)))

    # The UNet.

    def unet(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor,
        fps: Tensor,
        omega: Tensor | None = None,
        strength: Tensor | None = None,
    ) -> Tensor:
        """x (B, C, F, H, W), t and fps (B,), context (B, L, D), guidance embeddings (B, 256) -> like x."""
        batch, frames = x.shape[0], x.shape[2]
        embedding = sinusoid(t, self.state["time_embed.0.weight"].shape[1])
        if omega is not None:
            term = self.linear("time_cond_proj", omega)
            if strength is not None:
                term = self.linear("combine_proj", torch.cat([term, self.linear("motion_cond_proj", strength)], dim=1))
            embedding = embedding + term
        embedding = self.mlp("time_embed", embedding)
        embedding = embedding + self.mlp("fps_embedding", sinusoid(fps, self.state["fps_embedding.0.weight"].shape[1]))
        embedding, context = (v.repeat_interleave(frames, dim=0) for v in (embedding, context))

        h = self.conv("input_blocks.0.0", x.transpose(1, 2).flatten(0, 1), padding=1)
        h = self.transformer("init_attn.0", h, batch, None, self.state["init_attn.0.proj_in.weight"].shape[0] // 8)
        kept = [h]
        for i in self.numbers(r"input_blocks\.(\d+)\.")[1:]:
            h = self.block(f"input_blocks.{i}", h, embedding, context, batch)
            kept.append(h)
        h = self.block("middle_block", h, embedding, context, batch)
        for i in self.numbers(r"output_blocks\.(\d+)\."):
            h = self.block(f"output_blocks.{i}", torch.cat([h, kept.pop()], dim=1), embedding, context, batch)
        h = self.conv("out.2", nnf.silu(self.norm("out.0", h, 1e-5)), padding=1)
        return h.unflatten(0, (batch, frames)).transpose(1, 2)

    def numbers(self, pattern: str) -> list[int]:
        """The numbers in the keys that match, ascending."""
        return sorted({int(m[1]) for key in self.state if (m := re.match(pattern, key))})

    def block(self, name: str, h: Tensor, embedding: Tensor, context: Tensor, batch: int) -> Tensor:
        """The layers name.0, name.1, ... one after the other; of two transformers the first is the spatial one."""
        spatial = True
        for i in self.numbers(re.escape(name) + r"\.(\d+)\."):
            layer = f"{name}.{i}"
            if self.has(f"{layer}.in_layers.0.weight"):
                h = self.resnet(layer, h, embedding, batch)
            elif self.has(f"{layer}.op.weight"):
                h = self.conv(f"{layer}.op", h, stride=2, padding=1)
            elif self.has(f"{layer}.conv.weight"):
                h = self.conv(f"{layer}.conv", nnf.interpolate(h, scale_factor=2, mode="nearest"), padding=1)
            else:
                h = self.transformer(layer, h, batch, context if spatial else None, self.head)
                spatial = False
        return h

    def resnet(self, name: str, x: Tensor, embedding: Tensor, batch: int) -> Tensor:
        """Two convolutions with the time embedding between them, then four over time."""
        h = self.conv(f"{name}.in_layers.2", nnf.silu(self.norm(f"{name}.in_layers.0", x, 1e-5)), padding=1)
        h = h + self.linear(f"{name}.emb_layers.1", nnf.silu(embedding))[:, :, None, None]
        h = self.conv(f"{name}.out_layers.3", nnf.silu(self.norm(f"{name}.out_layers.0", h, 1e-5)), padding=1)
        if self.has(f"{name}.skip_connection.weight"):
            x = self.conv(f"{name}.skip_connection", x)
        video = (x + h).unflatten(0, (batch, -1)).transpose(1, 2)
        h = video
        for k, i in ((1, 2), (2, 3), (3, 3), (4, 3)):
            layer = f"{name}.temopral_conv.conv{k}"
            h = self.conv(f"{layer}.{i}", nnf.silu(self.norm(f"{layer}.0", h, 1e-5)), padding=(1, 0, 0))
        return (video + h).transpose(1, 2).flatten(0, 1)

    def transformer(self, name: str, x: Tensor, batch: int, context: Tensor | None, head: int) -> Tensor:
        """Over the positions of a frame with the text, or (`context` None) over the frames of a position, twice."""
        height, width = x.shape[-2:]
        if context is not None:
            h = self.norm(f"{name}.norm", x, 1e-6).flatten(2).transpose(1, 2)
        else:
            h = self.norm(f"{name}.norm", x.unflatten(0, (batch, -1)).transpose(1, 2), 1e-6)
            h = h.permute(0, 3, 4, 2, 1).flatten(0, 2)
        h, inner = self.linear(f"{name}.proj_in", h), f"{name}.transformer_blocks.0"
        h = h + self.attention(f"{inner}.attn1", self.layer_norm(f"{inner}.norm1", h), None, head)
        h = h + self.attention(f"{inner}.attn2", self.layer_norm(f"{inner}.norm2", h), context, head)
        value, gate = self.linear(f"{inner}.ff.net.0.proj", self.layer_norm(f"{inner}.norm3", h)).chunk(2, dim=-1)
        h = h + self.linear(f"{inner}.ff.net.2", value * nnf.gelu(gate))
        h = self.linear(f"{name}.proj_out", h)
        if context is not None:
            return x + h.transpose(1, 2).unflatten(2, (height, width))
        return x + h.unflatten(0, (batch, height, width)).permute(0, 3, 4, 1, 2).flatten(0, 1)

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        """Over the last axis."""
        return nnf.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def attention(self, name: str, x: Tensor, context: Tensor | None, head: int) -> Tensor:
        """(N, L, D) -> (N, L, D), to `context` or to itself."""
        into = x if context is None else context
        q, k, v = (self.linear(f"{name}.to_{part}", s) for part, s in (("q", x), ("k", into), ("v", into)))
        q, k, v = (part.unflatten(-1, (-1, head)).transpose(1, 2) for part in (q, k, v))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(head)).softmax(dim=-1)
        return self.linear(f"{name}.to_out.0", (weights @ v).transpose(1, 2).flatten(2))

    # The autoencoder.

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [-1, 1] -> mean and log-variance of the latents."""
        h = self.conv("encoder.conv_in", image, padding=1)
        for i in self.numbers(r"encoder\.down\.(\d+)\."):
            for j in self.numbers(rf"encoder\.down\.{i}\.block\.(\d+)\."):
                h = self.plain(f"encoder.down.{i}.block.{j}", h)
            if self.has(f"encoder.down.{i}.downsample.conv.weight"):
                h = self.conv(f"encoder.down.{i}.downsample.conv", nnf.pad(h, (0, 1, 0, 1)), stride=2)
        h = self.conv(
            "encoder.conv_out", nnf.silu(self.norm("encoder.norm_out", self.middle("encoder", h), 1e-6)), padding=1
        )
        mean, logvar = self.conv("quant_conv", h).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> images (B, 3, H, W)."""
        h = self.middle("decoder", self.conv("decoder.conv_in", self.conv("post_quant_conv", z), padding=1))
        for i in reversed(self.numbers(r"decoder\.up\.(\d+)\.")):
            for j in self.numbers(rf"decoder\.up\.{i}\.block\.(\d+)\."):
                h = self.plain(f"decoder.up.{i}.block.{j}", h)
            if self.has(f"decoder.up.{i}.upsample.conv.weight"):
                h = nnf.interpolate(h, scale_factor=2, mode="nearest")
                h = self.conv(f"decoder.up.{i}.upsample.conv", h, padding=1)
        return self.conv("decoder.conv_out", nnf.silu(self.norm("decoder.norm_out", h, 1e-6)), padding=1)

    def plain(self, name: str, x: Tensor) -> Tensor:
        """Two convolutions and their skip connection."""
        h = self.conv(f"{name}.conv1", nnf.silu(self.norm(f"{name}.norm1", x, 1e-6)), padding=1)
        h = self.conv(f"{name}.conv2", nnf.silu(self.norm(f"{name}.norm2", h, 1e-6)), padding=1)
        return h + (self.conv(f"{name}.nin_shortcut", x) if self.has(f"{name}.nin_shortcut.weight") else x)

    def middle(self, half: str, h: Tensor) -> Tensor:
        """A block, attention of one head over all positions, a block."""
        h, name = self.plain(f"{half}.mid.block_1", h), f"{half}.mid.attn_1"
        x = self.norm(f"{name}.norm", h, 1e-6).flatten(2).transpose(1, 2)
        q, k, v = (self.linear(f"{name}.{part}", x) for part in "qkv")
        x = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(dim=-1) @ v
        h = h + self.linear(f"{name}.proj_out", x).transpose(1, 2).unflatten(2, h.shape[-2:])
        return self.plain(f"{half}.mid.block_2", h)

    # The text tower.

    def text(self, ids: Tensor, heads: int, skip: int = 1, quick: bool = False) -> Tensor:
        """Token ids (B, L) -> the output of the last block but `skip`, normalised (B, L, D)."""
        length = ids.shape[1]
        h = self.state["token_embedding.weight"][ids] + self.state["positional_embedding"][:length]
        mask = torch.full((length, length), -math.inf, dtype=h.dtype).triu(1)
        for i in range(self.numbers(r"transformer\.resblocks\.(\d+)\.")[-1] + 1 - skip):
            name = f"transformer.resblocks.{i}"
            x = self.layer_norm(f"{name}.ln_1", h)
            q, k, v = (
                nnf.linear(x, self.state[f"{name}.attn.in_proj_weight"], self.state[f"{name}.attn.in_proj_bias"])
                .unflatten(-1, (3, heads, -1))
                .permute(2, 0, 3, 1, 4)
            )
            x = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + mask).softmax(dim=-1) @ v
            h = h + self.linear(f"{name}.attn.out_proj", x.transpose(1, 2).flatten(2))
            x = self.linear(f"{name}.mlp.c_fc", self.layer_norm(f"{name}.ln_2", h))
            h = h + self.linear(f"{name}.mlp.c_proj", x * torch.sigmoid(1.702 * x) if quick else nnf.gelu(x))
        return self.layer_norm("ln_final", h)
