"""Records of temporal attention: softmax(q k^T) is computed again while a network runs.

Legend: B batch, P latent positions (h w), F frames, N = P * heads with the position outer and the head inner.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from guidedcd.errors import GuidedCDError
from guidedcd.models import recording

KIND = "temporal-attention"
_TEMPORAL = re.compile(r"(^transformer_in|(temp_attentions|motion_modules)\.\d+)\.transformer_blocks\.\d+\.attn[12]$")
_SETS = {
    # The first temporal self-attention of every up block: nine modules in VideoCrafter2, as in the released code.
    "official": re.compile(r"^up_blocks\.\d+\..*\.transformer_blocks\.0\.attn1$"),
    # Both temporal self-attentions of the second up block, as in MotionClone.
    "motionclone": re.compile(r"^up_blocks\.1\."),
    "all": re.compile(""),
}


def temporal_layers(network: nn.Module) -> dict[str, Attention]:
    """Every temporal self-attention of a UNet by module name, in forward order of each block."""
    return {
        name: module
        for name, module in network.named_modules()
        if _TEMPORAL.search(name) and not getattr(module, "is_cross_attention", False)
    }


def select_layers(network: nn.Module, layers: str) -> dict[str, Attention]:
    """The temporal self-attentions that `layers` selects.

    Args:
        network: A UNet.
        layers: "official", "motionclone", "all", or module-name prefixes joined by commas ("up_blocks.1,mid_block").

    Raises:
        GuidedCDError: Nothing matches; the message lists the layers.
    """
    available = temporal_layers(network)
    if layers in _SETS:
        chosen = {name: module for name, module in available.items() if _SETS[layers].search(name)}
    else:
        prefixes = [prefix.strip().rstrip(".") for prefix in layers.split(",") if prefix.strip()]
        missing = [p for p in prefixes if not any(_below(name, p) for name in available)]
        if missing:
            chosen = {}
            layers = ", ".join(missing)
        else:
            chosen = {name: module for name, module in available.items() if any(_below(name, p) for p in prefixes)}
    if not chosen:
        names = ", ".join(available) or "none at all"
        raise GuidedCDError(
            f"no temporal attention matches '{layers}'. Use {', '.join(_SETS)} or a module-name prefix; "
            f"this network has: {names}."
        )
    return chosen


def recorded_layers(network: nn.Module, needs: Sequence[str]) -> set[nn.Module]:
    """The modules whose attention `record` records for `needs`.

    Raises:
        NeedError: A need selects no layer.
    """
    probe = _TemporalAttention(batch=1, recompute=False)
    return {
        module
        for need in needs
        if need.partition(":")[0] == KIND
        for module in recording.layers_of(probe, network, need).values()
    }


class _TemporalAttention:
    """The probe of attention over frames; its arguments are those of `record`."""

    def __init__(self, batch: int, recompute: bool) -> None:
        self.batch, self.recompute = batch, recompute

    def layers(self, network: nn.Module, need: str) -> dict[str, Attention]:
        """The temporal self-attentions that a need selects."""
        kind, _, named = need.partition(":")
        if kind != KIND:
            raise GuidedCDError(
                f"a UNet teacher cannot record '{need}'; it knows {KIND}:LAYERS. Its layers attend either within "
                "frames or over frames, as the energy pta reads them."
            )
        return select_layers(network, named or "official")

    def values(self, name: str, module: Attention, args: tuple, kwargs: dict) -> dict[str, Tensor]:
        """By the layer's name, its attention probabilities."""
        hidden = args[0] if args else kwargs["hidden_states"]
        if self.recompute and torch.is_grad_enabled() and hidden.requires_grad:
            return {
                name: checkpoint(attention, module, hidden, self.batch, use_reentrant=False, preserve_rng_state=False)
            }
        return {name: attention(module, hidden, self.batch)}


def record(
    network: nn.Module, needs: Sequence[str], batch: int, *, tail: str = "whole", recompute: bool = False
) -> AbstractContextManager[dict[str, dict[str, Tensor]]]:
    """Record attention during the forward pass inside the block.

    Args:
        network: A UNet.
        needs: Strings "temporal-attention:LAYERS", see `select_layers`.
        batch: Batch size B of the forward pass.
        tail: How the rest of the pass runs after the last record, see `recording.record`.
        recompute: Recompute the probabilities for the gradient instead of saving their inputs.

    Raises:
        ValueError: `tail` is unknown.
        NeedError: A need is unknown, or selects no layer.

    Returns:
        A context manager, which yields by need, by module name: attention probabilities (B, N, F, F), at least float32,
        rows sum to 1, with gradient where the forward pass has one.
    """
    return recording.record(network, needs, _TemporalAttention(batch, recompute), tail=tail)


def attention(module: Attention, hidden: Tensor, batch: int) -> Tensor:
    """Attention probabilities (B, N, F, F) of a diffusers `Attention` module.

    Args:
        module: A temporal self-attention.
        hidden: Its input, (B P, F, channels); or (B, F, P, channels) from fast layers.
        batch: B.
    """
    frames = hidden.shape[1]
    q, k = (proj(hidden).unflatten(-1, (module.heads, -1)) for proj in (module.to_q, module.to_k))
    q, k = (x.transpose(1, 2) if x.dim() == 4 else x.permute(0, 2, 3, 1, 4) for x in (q, k))
    if getattr(module, "norm_q", None) is not None:
        q, k = module.norm_q(q), module.norm_k(k)
    dtype = torch.promote_types(q.dtype, torch.float32)
    logits = (q.to(dtype) * module.scale) @ k.to(dtype).transpose(-1, -2)
    return logits.softmax(dim=-1).reshape(batch, -1, frames, frames)


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")
