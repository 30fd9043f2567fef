"""Low-rank adapters of a student: which layers get them, and how they are added."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from guidedcd.errors import GuidedCDError


def adapter_targets(teacher: Any, network: nn.Module) -> list[str]:
    """Names of the layers of a teacher's denoiser that get adapters: those that the teacher names, else every layer.

    Raises:
        GuidedCDError: The teacher names layers, and the network has none of them.
    """
    layers = [name for name, m in network.named_modules() if type(m) in (nn.Linear, nn.Conv2d, nn.Conv3d)]
    pattern = getattr(teacher, "adapter_targets", None)
    if pattern is None:
        return layers
    chosen = [name for name in layers if re.search(pattern, name)]
    if not chosen:
        raise GuidedCDError(f"no layer of {type(network).__name__} matches the teacher's `adapter_targets`: {pattern}")
    return chosen


def with_adapters(network: nn.Module, rank: int, targets: Sequence[str]) -> nn.Module:
    """The network with trainable adapters of a rank in its `targets`, and everything else frozen."""
    from peft import LoraConfig, inject_adapter_in_model

    # alpha = rank, so the adapter's output is not scaled. lora_dropout 0, since `set_dropout` sets all dropout.
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=list(targets))
    network.requires_grad_(False)
    adapted = inject_adapter_in_model(config, network)
    for module in adapted.modules():
        if type(module).__name__ == "AnimateDiffTransformer3D":  # it calls these layers with the keyword `input`
            for layer in (module.proj_in, module.proj_out):
                layer.register_forward_pre_hook(_positional, with_kwargs=True)
    return adapted


def _positional(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Pass the keyword `input` of a layer as its first argument, whose name in peft's layers is `x`."""
    others = {name: value for name, value in kwargs.items() if name != "input"}
    return (kwargs["input"], *args) if "input" in kwargs else args, others
