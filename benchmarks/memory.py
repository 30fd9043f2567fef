"""What a training step on the fast paths keeps in memory, counted on tensors without any: no GPU is needed.

    python benchmarks/memory.py                    # seconds, on any machine

Layers run as they would on a GPU, with kernels that only allocate their outputs. `kept_gb` is the memory of activations
when the forward pass has ended and rewards are computed, `peak_gb` the most in the backward pass, gradients included.
Weights, masters and AdamW (18.4 GB) come on top, and with three rewards 6.4 GB for their weights and the decoder's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import harness  # first: it finds guidedcd where that is not installed
import networks
import torch
from torch import Tensor, nn

from guidedcd import acceleration
from guidedcd.acceleration.activation_checkpointing import RECOMPUTED, checkpoint_layers
from guidedcd.planning.meter import metered

SETTINGS = ("nothing", *RECOMPUTED)


def like(x: Tensor, *_: Any) -> Tensor:
    """An output of the same size."""
    return torch.empty_like(x)


def group_norm(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """Output and statistics."""
    return torch.empty(x.shape, device=x.device, dtype=x.dtype), x.new_empty(x.shape[0], 32, 2, dtype=torch.float32)


def group_norm_backward(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients; the last three of `rest` are the shift, and whether weights and shift need one."""
    shift, learned, shifted = rest[-3:]
    n, channels = x.shape[0], x.shape[2]
    sums = x.new_empty(2, channels, dtype=torch.float32) if learned else None
    return like(x), sums, x.new_empty(n, channels, dtype=torch.float32) if shifted and shift is not None else None


def layer_norm(x: Tensor, delta: Tensor | None, *_: Any) -> tuple[Tensor, Tensor]:
    """Sum and its norm."""
    return x if delta is None else like(x), like(x)


def layer_norm_backward(grad: Tensor, of_sum: Any, total: Tensor, *rest: Any) -> tuple[Tensor, Tensor | None]:
    """Gradients of the sum, and of the weights where the last of `rest` is true."""
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
        for module in (operations, convolutions):  # autocast does not support this device
            stack.enter_context(mock.patch.object(module, "target_dtype", lambda x: x.dtype))
        yield


def activations(recomputed: str, batch: int = 3, tiny: bool = False) -> dict[str, float]:
    """Memory that a step's forward pass keeps and the most in the step, and TFLOP of one forward pass and of both.

    Args:
        recomputed: Layers that are computed again in the backward pass: "nothing", or a value of
            --train.activation-checkpoint.layers.
        batch: Videos.
        tiny: Of a tiny network.
    """
    network = nn.Module.to(networks.empty_unet(tiny), torch.bfloat16)
    acceleration.speed_up(network)
    if recomputed != "nothing":
        checkpoint_layers(network, recomputed)
    meta = {"device": "meta", "dtype": torch.bfloat16}
    z = torch.empty(batch, *networks.geometry(tiny).latent_shape, **meta)
    prompt = torch.empty(batch, networks.TOKENS, networks.text_width(tiny), **meta)
    with on_paper(), metered() as cost:
        t = torch.empty(batch, device="meta", dtype=torch.long)
        out = network(z, t, encoder_hidden_states=prompt, return_dict=False)[0]
        kept, forward = cost.remaining, cost.flops
        out.float().square().mean().backward()
    return {
        "kept_gb": kept / harness.GB,
        "peak_gb": cost.peak / harness.GB,
        "forward_tflop": forward / 1e12,
        "total_tflop": cost.flops / 1e12,
    }


def main() -> None:
    """Count."""
    options = harness.parser(__doc__, budget=60).parse_args()
    recorder = harness.Recorder(options, "memory")
    for name in SETTINGS:
        if harness.selected(name, options.only):
            recorder.attempt(name, lambda name=name: recorder.add(name, activations(name, tiny=options.tiny), batch=3))


if __name__ == "__main__":
    main()
