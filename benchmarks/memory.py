"""What a training step on the fast paths keeps in memory, counted on tensors without any: no GPU is needed.

    python benchmarks/memory.py                    # seconds, on any machine

Layers run as they would on a GPU, with kernels that only make their outputs. GiB of activations: what is there when the
forward pass is over and rewards are computed, and the most in the backward pass, gradients included. Beside them stand
weights, masters and AdamW (18.4 GiB) and, with three rewards, 6.4 GiB of their weights and the decoder's.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any
from unittest import mock

import bare  # also finds guidedcd where it is not installed
import torch
from torch import Tensor, nn

from guidedcd import acceleration
from guidedcd.acceleration.activation_checkpointing import RECOMPUTED, checkpoint_layers
from guidedcd.planning.meter import metered

GIB = 2**30
SETTINGS = ("nothing", *RECOMPUTED)


def like(x: Tensor, *_: Any) -> Tensor:
    """An output of the same size."""
    return torch.empty_like(x)


def group_norm(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """Output and statistics."""
    return torch.empty(x.shape, device=x.device, dtype=x.dtype), x.new_empty(x.shape[0], 32, 2, dtype=torch.float32)


def group_norm_backward(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients; the last three of `rest` are the shift, and whether weights and shift want one."""
    shift, learned, shifted = rest[-3:]
    n, channels = x.shape[0], x.shape[2]
    sums = x.new_empty(2, channels, dtype=torch.float32) if learned else None
    return like(x), sums, x.new_empty(n, channels, dtype=torch.float32) if shifted and shift is not None else None


def layer_norm(x: Tensor, delta: Tensor | None, *_: Any) -> tuple[Tensor, Tensor]:
    """Sum and its norm."""
    return x if delta is None else like(x), like(x)


def layer_norm_backward(grad: Tensor, of_sum: Any, total: Tensor, *rest: Any) -> tuple[Tensor, Tensor | None]:
    """Gradients of the sum, and of the weights where the last of `rest` says so."""
    return like(total), total.new_empty(2, total.shape[-1], dtype=torch.float32) if rest[-1] else None


def geglu(x: Tensor, *_: Any) -> Tensor:
    """Half of the channels."""
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


def geglu_backward(grad: Tensor, x: Tensor, bias: Any, learned: bool) -> tuple[Tensor, Tensor | None]:
    """Gradients of the input and of its bias."""
    return like(x), x.new_empty(x.shape[-1], dtype=torch.float32) if learned else None


def frame_attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, ...]:
    """Gradients of queries, keys and values."""
    return like(q), like(k), like(v)


def packed_frame_attention(qkv: Tensor, *_: Any) -> Tensor:
    """A third of the channels."""
    return qkv.new_empty(*qkv.shape[:-1], qkv.shape[-1] // 3)


def packed_frame_attention_backward(grad: Tensor, qkv: Tensor, *_: Any) -> Tensor:
    """The gradient of all three."""
    return like(qkv)


@contextlib.contextmanager
def on_paper() -> Iterator[None]:
    """Fast paths take the way that they take on a GPU, with kernels that compute nothing."""
    from guidedcd.acceleration import attention, convolutions, operations
    from guidedcd.acceleration.kernels import backward
    from guidedcd.acceleration.kernels import forward as kernels
    from guidedcd.acceleration.kernels import group_norm as group_norm_kernels

    replaced = [
        *((group_norm_kernels, function) for function in (group_norm, group_norm_backward)),
        *((kernels, function) for function in (layer_norm, geglu, frame_attention_backward)),
        *((kernels, function) for function in (packed_frame_attention, packed_frame_attention_backward)),
        *((backward, function) for function in (layer_norm_backward, geglu_backward)),
    ]
    with contextlib.ExitStack() as stack:
        for module, function in replaced:
            stack.enter_context(mock.patch.object(module, function.__name__, function))
        for name in ("residual", "frame_attention"):
            stack.enter_context(mock.patch.object(kernels, name, like))
        stack.enter_context(mock.patch.object(operations, "fused", lambda x: True))
        stack.enter_context(mock.patch("guidedcd.acceleration.layers.fused", lambda x: True))
        stack.enter_context(mock.patch.object(attention, "takes", lambda q: True))
        for module in (operations, convolutions):  # autocast knows no such device
            stack.enter_context(mock.patch.object(module, "target_dtype", lambda x: x.dtype))
        yield


def activations(recomputed: str, batch: int = 3, tiny: bool = False) -> dict[str, float]:
    """GiB that a step's forward pass keeps, GiB at the most, and TFLOP of one forward pass and of both."""
    with torch.device("meta"):
        from diffusers import UNet3DConditionModel

        network: nn.Module = UNet3DConditionModel(**(bare.TINY if tiny else {})).to(torch.bfloat16)
    acceleration.speed_up(network)
    if recomputed != "nothing":
        checkpoint_layers(network, recomputed)
    size, width = ((4, 4, 8, 8), 32) if tiny else ((4, bare.FRAMES, bare.HEIGHT, bare.WIDTH), 1024)
    how = {"device": "meta", "dtype": torch.bfloat16}
    z, prompt = torch.empty(batch, *size, **how), torch.empty(batch, 77, width, **how)
    with on_paper(), metered() as cost:
        t = torch.empty(batch, device="meta", dtype=torch.long)
        out = network(z, t, encoder_hidden_states=prompt, return_dict=False)[0]
        kept, forward = cost.kept, cost.flops
        out.float().square().mean().backward()
    return {"kept": kept / GIB, "most": cost.peak / GIB, "forward": forward / 1e12, "whole": cost.flops / 1e12}


def main() -> None:
    """Count."""
    options = bare.parser(__doc__, budget=60).parse_args()
    found = {name: activations(name, tiny=options.tiny) for name in SETTINGS}
    print("batch 3, recomputed: kept GiB, at most GiB, forward TFLOP, forward and backward TFLOP")
    for name, values in found.items():
        print(f"{name:10s}", *(f"{value:8.2f}" for value in values.values()))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
