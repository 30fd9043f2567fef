"""Stage `dit`: the video transformer, trained by flow matching on the latents and the confused captions of the UNet.

z = (1 - s) x0 + s eps at the noise level s, and the prediction is eps - x0. The network receives 1000 s as its time.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn

from guidedcd.acceleration.precision import cast
from guidedcd_shapes.recipe import teacher
from guidedcd_shapes.recipe.sampling import FlowSampler
from guidedcd_shapes.recipe.session import Session

CENTER, SPREAD = 0.8, 1.2
"""Mean and standard deviation of the log-odds of half of the noise levels; the others are uniform."""
TOLERANCE = 0.05
"""Largest relative difference of compiled blocks in bfloat16."""


def levels(count: int, device: torch.device) -> Tensor:
    """Random noise levels (count,) in (0, 1)."""
    uniform, normal = torch.rand(2, count, device=device), torch.randn(count, device=device)
    return torch.where(uniform[0] < 0.5, uniform[1], (CENTER + SPREAD * normal).sigmoid())


def objective(network: nn.Module, data: teacher.Latents, batch: int) -> Tensor:
    """Flow-matching loss on a random batch."""
    device = data.z.device
    index = torch.randint(0, len(data.z), (batch,), device=device)
    x0, noise = data.z[index].float(), torch.randn(batch, *data.z.shape[1:], device=device)
    dropped = torch.rand(batch, device=device) < teacher.DROP
    prompts = torch.where(dropped[:, None, None], data.null, data.prompts[index])
    level = levels(batch, device)
    s = level.view(-1, 1, 1, 1, 1)
    z = ((1 - s) * x0 + s * noise).to(data.session.dtype)
    output = network(z, 1000 * level, prompts, return_dict=False)[0].float()
    return (output - (noise - x0)).square().mean()


def initialise(network: Any) -> None:
    """Start with a prediction of zero, and without an effect of the time on the blocks."""
    for layer in (network.proj_out, network.condition_embedder.time_proj):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def patches(self: nn.Conv3d, x: Tensor) -> Tensor:
    """The forward pass of a convolution whose stride is its kernel size, as a matrix product: (B, C, F, h, w)."""
    t, h, w = self.kernel_size
    b, c, frames, height, width = x.shape
    blocks = x.reshape(b, c, frames // t, t, height // h, h, width // w, w).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return nn.functional.linear(blocks.flatten(4), self.weight.flatten(1), self.bias).movedim(-1, 1)


def prepare(session: Session, network: Any) -> Any:
    """`network` in the session's dtype, in place; on a GPU its blocks are compiled if that changes no value."""
    cast(network, session.dtype)
    network.patch_embedding.forward = types.MethodType(patches, network.patch_embedding)
    if session.cuda and not session.tiny:
        try:
            error = _compile(session, network)
        except Exception as exception:  # the compiler needs more than torch, and training works without it
            session.log("dit", compiled=f"{type(exception).__name__}: {exception}"[:300])
            error = float("inf")
        session.log("dit", compiled=error <= TOLERANCE, error=error)
        if not error <= TOLERANCE:
            for block in network.blocks:
                block._compiled_call_impl = None
    return network


def _compile(session: Session, network: Any) -> float:
    """Compile the blocks, and return the relative difference of the first block's output and gradient."""
    network.requires_grad_(True)
    block, width = network.blocks[0], network.config.num_attention_heads * network.config.attention_head_dim

    def draw(*shape: int) -> Tensor:  # like the tensors of training, for which nothing is then compiled again
        values = torch.randn(
            *shape, device=session.device, dtype=session.dtype, generator=session.generator(sum(shape))
        )
        return values.requires_grad_(True)

    rotary = network.rope(torch.zeros(1, 4, 8, 12, 12, device=session.device))
    inputs = draw(KIND.batch, 288, width), draw(KIND.batch, 128, width), draw(KIND.batch, 6, width), rotary
    weight = block.attn1.to_q.weight

    def run() -> tuple[Tensor, Tensor]:
        output = block(*inputs)
        (gradient,) = torch.autograd.grad(output.float().square().mean(), weight)
        return output.detach().float(), gradient.float()

    stock = run()
    network.compile_repeated_blocks(dynamic=False)
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(run(), stock, strict=True))


KIND = teacher.Kind(
    stage="dit",
    network="dit",
    batch=256,
    sampler=FlowSampler,
    prepare=prepare,
    initialise=initialise,
    objective=lambda session, network, data, batch: lambda: objective(network, data, batch),
)


def run(session: Session, further: bool = False) -> None:
    """Train, or continue an interrupted training; `further` trains finished weights for the full budget again."""
    teacher.run(session, further, KIND)
