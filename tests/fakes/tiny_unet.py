"""Tiny `UNet3DConditionModel`s with random weights, and comparisons of their outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

LAYOUTS = {
    "two levels": {
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        "block_out_channels": (8, 16),
    },
    "attention everywhere": {
        "down_block_types": ("CrossAttnDownBlock3D",) * 2,
        "up_block_types": ("CrossAttnUpBlock3D",) * 2,
        "block_out_channels": (8, 8),
        "layers_per_block": 2,
    },
    "no attention in blocks": {
        "down_block_types": ("DownBlock3D",) * 3,
        "up_block_types": ("UpBlock3D",) * 3,
        "block_out_channels": (4, 8, 8),
    },
}


def tiny_unet(layout: str = "two levels", dtype: torch.dtype = torch.float64, **options: object) -> nn.Module:
    """A tiny UNet with random weights, also those that are zero at initialisation."""
    from diffusers import UNet3DConditionModel

    sizes = {"layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 8, "attention_head_dim": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet3DConditionModel(sample_size=8, **{**sizes, **LAYOUTS[layout], **options})
        for parameter in unet.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return unet.to(dtype).eval()


def inputs(
    frames: int = 3, height: int = 4, width: int = 6, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents of two videos, timesteps and prompts."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, 4, frames, height, width, generator=generator, dtype=torch.float64)
    prompt = torch.randn(2, 5, 8, generator=generator, dtype=torch.float64)
    return z.to(dtype), torch.tensor([7, 930]), prompt.to(dtype)


def predict(unet: nn.Module, z: Tensor, t: Tensor, prompt: Tensor, **options: object) -> Tensor:
    """The network's prediction, called as a teacher does."""
    return unet(z, t, encoder_hidden_states=prompt, return_dict=False, **options)[0]


def gradients(unet: nn.Module, z: Tensor, t: Tensor, prompt: Tensor, **options: object) -> dict[str, Tensor]:
    """Gradients of a nonlinear loss with respect to the latents and to all trained parameters."""
    z = z.clone().requires_grad_(True)
    trained = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    values = torch.autograd.grad(predict(unet, z, t, prompt, **options).square().sum(), [z, *trained.values()])
    return dict(zip(("z", *trained), values, strict=True))


def saved_numbers(function: Callable[[], Tensor]) -> int:
    """The count of numbers besides weights that autograd saves for a call; each storage counts once."""
    saved: dict[int, Tensor] = {}

    def record(x: Tensor) -> Tensor:
        if not isinstance(x, nn.Parameter) and not isinstance(x._base, nn.Parameter):
            saved[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(record, lambda x: x):
        function()
    return sum(x.untyped_storage().nbytes() // x.element_size() for x in saved.values())


def assert_near(actual: dict[str, Tensor], stock: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    """Check that tensors are equal up to rounding, relative to each tensor's largest value."""
    assert list(actual) == list(stock)
    for name, value in stock.items():
        assert (actual[name] - value).abs().max() <= tolerance * value.abs().max().clamp_min(1e-3), name
