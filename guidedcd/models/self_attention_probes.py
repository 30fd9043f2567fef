"""Records of self-attention over space and time: queries and keys of one block, after norms and rotary embedding.

They are computed again from the inputs of the block's self-attention, so that the pass may end before this attention
runs. Tokens of text have no queries and keys here.
Legend: B batch, N heads, F x h x w the grid of video tokens, D width of a head, L = F h w.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from guidedcd.errors import GuidedCDError, NeedError

KIND = "self-attention"
QUERIES, KEYS = "queries", "keys"
"""Names in a record."""

Projections = Callable[[Any, Sequence[Any], Mapping[str, Any]], tuple[Tensor, Tensor]]


class SelfAttention:
    """The probe of one block's self-attention, a `guidedcd.models.recording.Probe`."""

    def __init__(self, blocks: Collection[str], name: str, grid: tuple[int, int, int]) -> None:
        """State where the attention is.

        Args:
            blocks: Names of the classes of the network's repeated blocks.
            name: Name of the self-attention in a block.
            grid: Video tokens along frames, height and width, in this order of tokens.
        """
        self.blocks, self.name, self.grid = blocks, name, grid

    def layers(self, network: nn.Module, need: str) -> dict[str, nn.Module]:
        """The self-attention of the block that a need selects: "self-attention:14", or "self-attention" for `middle`.

        Raises:
            GuidedCDError: The need is of another kind, or the network has no such block.
        """
        if need.partition(":")[0] != KIND:
            raise GuidedCDError(
                f"a {type(network).__name__} records no '{need}': its attention joins space and time. Use an energy of "
                "such attention (amf, pta-3d), or one of the output (x0-motion)."
            )
        path = f"{_selected(network, self.blocks, need)}.{self.name}"
        return {path: network.get_submodule(path)}

    def values(self, name: str, module: Any, args: tuple, kwargs: dict) -> dict[str, Tensor]:
        """Queries and keys (B, N, F, h, w, D), in the network's dtype, with gradient where the pass has one."""
        queries, keys = (x.unflatten(2, self.grid) for x in queries_and_keys(module, args, kwargs))
        return {QUERIES: queries, KEYS: keys}


def middle(count: int) -> int:
    """The block at half the depth of `count` blocks: 14 of 30 (Wan 1.3B), 20 of 42 (CogVideoX 5B, as in DiTFlow)."""
    return (count - 1) // 2


def recorded_blocks(network: nn.Module, blocks: Collection[str], needs: Sequence[str]) -> set[nn.Module]:
    """The blocks, of these classes, whose self-attention is recorded for `needs`.

    Raises:
        NeedError: The network has no such block.
    """
    own = [need for need in needs if need.partition(":")[0] == KIND]
    return {network.get_submodule(_selected(network, blocks, need)) for need in own}


def _selected(network: nn.Module, blocks: Collection[str], need: str) -> str:
    """The name of the block that a need selects."""
    names = [name for name, module in network.named_modules() if type(module).__name__ in blocks]
    number = need.partition(":")[2]
    index = middle(len(names)) if not number else int(number) if number.isdecimal() else -1
    if not 0 <= index < len(names):
        raise NeedError(
            f"a {type(network).__name__} with {len(names)} blocks records no '{need}'. Use a block from 0 to "
            f"{len(names) - 1}.",
            need=need,
        )
    return names[index]


def token_grid(config: Any, latents: Sequence[int]) -> tuple[int, int, int]:
    """Tokens along frames, height and width of latents (..., F, h, w), by a diffusers transformer's configuration.

    Args:
        config: It has `patch_size`, three sizes; or one for height and width, beside `patch_size_t` for frames.
        latents: Shape of the latents.
    """
    patch = config.patch_size
    if isinstance(patch, int):
        patch = (config.get("patch_size_t") or 1, patch, patch)
    frames, height, width = (size // one for size, one in zip(latents[-3:], patch, strict=True))
    return frames, height, width


def queries_and_keys(attn: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Queries and keys (B, N, L, D) of the video tokens, as the attention's processor computes them.

    Args:
        attn: A self-attention of diffusers, of a class in `PROJECTIONS` or derived from one.
        args: Its arguments.
        kwargs: Its named arguments.

    Raises:
        GuidedCDError: The class is unknown.
    """
    for cls in type(attn).__mro__:
        if cls.__name__ in PROJECTIONS:
            return PROJECTIONS[cls.__name__](attn, args, kwargs)
    raise GuidedCDError(
        f"no queries and keys can be recorded of a {type(attn).__name__}; those of {', '.join(PROJECTIONS)} can."
    )


def _wan(attn: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """`WanAttnProcessor`: norms over all heads, then pairs of neighbouring channels are rotated in each head."""
    hidden, _, _, rotary = _arguments(args, kwargs, _WAN)
    queries, keys = (x.unflatten(2, (attn.heads, -1)) for x in _normed(attn, hidden))
    if rotary is not None:
        queries, keys = (_rotated_pairs(x, *rotary) for x in (queries, keys))
    return queries.transpose(1, 2), keys.transpose(1, 2)


def _ltx(attn: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """`LTXVideoAttnProcessor`: norms over all heads and rotation before the heads are separated."""
    from diffusers.models.transformers.transformer_ltx import apply_rotary_emb

    hidden, _, _, rotary = _arguments(args, kwargs, _ROTARY)
    queries, keys = _normed(attn, hidden)
    if rotary is not None:
        queries, keys = apply_rotary_emb(queries, rotary), apply_rotary_emb(keys, rotary)
    queries, keys = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (queries, keys))
    return queries, keys


def _joint(attn: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """`CogVideoXAttnProcessor2_0`: norms in each head; text is another argument, which is not rotated."""
    from diffusers.models.embeddings import apply_rotary_emb

    hidden, _, _, rotary = _arguments(args, kwargs, _ROTARY)
    queries, keys = (proj(hidden).unflatten(2, (attn.heads, -1)).transpose(1, 2) for proj in (attn.to_q, attn.to_k))
    if attn.norm_q is not None:
        queries = attn.norm_q(queries)
    if attn.norm_k is not None:
        keys = attn.norm_k(keys)
    if rotary is not None:
        queries, keys = apply_rotary_emb(queries, rotary), apply_rotary_emb(keys, rotary)
    return queries, keys


PROJECTIONS: dict[str, Projections] = {"WanAttention": _wan, "LTXAttention": _ltx, "Attention": _joint}
"""By class of a self-attention in diffusers, how its queries and keys are computed."""

_WAN = ("hidden_states", "encoder_hidden_states", "attention_mask", "rotary_emb")
_ROTARY = ("hidden_states", "encoder_hidden_states", "attention_mask", "image_rotary_emb")
"""Arguments of these classes."""


def _arguments(args: Sequence[Any], kwargs: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    """The arguments of a call in the order of `names`, None where one is missing."""
    return [
        kwargs.get(name) if value is None else value for name, value in itertools.zip_longest(names, args[: len(names)])
    ]


def _normed(attn: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys (B, L, N D) with norms over all heads."""
    return attn.norm_q(attn.to_q(hidden)), attn.norm_k(attn.to_k(hidden))


def _rotated_pairs(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Pairs of channels (B, L, N, D) rotated by angles (1, L, 1, D), each of which stands twice."""
    one, other = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cosines[..., 0::2], sines[..., 1::2]
    return torch.stack([one * cos - other * sin, one * sin + other * cos], dim=-1).flatten(-2).type_as(x)
