"""Primary temporal attention: the distance of a few attention entries from those of a reference (paper Eq. 6 and 7).

Legend: B batch, N attention maps (positions times heads), F frames.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
from torch import Tensor

from guidedcd.diffusion.seen import Seen
from guidedcd_pta import PTAConfig


@attrs.frozen(kw_only=True, eq=False)
class Kept:
    """What is compared of one layer of a reference."""

    values: Tensor
    """Its largest probabilities (B, N, F, top)."""
    index: Tensor
    """To which frames they attend (B, N, F, top), uint8 where that is enough."""


class PTA:
    """Mean over layers of the mean over masked entries of (reference - generated)^2, per sample; lower is better."""

    records_only = True
    """Reads neither the output nor what follows from it, so that forward passes may end at the last record."""

    def __init__(self, config: PTAConfig) -> None:
        """Take the options."""
        self.config = config
        self.needs = (f"temporal-attention:{config.layers}",)

    def keep(self, reference: Seen) -> Mapping[str, Kept] | Seen:
        """What the energy will read of a reference: of every attention row its largest entries and their places."""
        if self.config.ties != "first":
            return reference
        return {name: largest(maps, self.config.top) for name, maps in reference.records[self.needs[0]].items()}

    def __call__(self, seen: Seen, reference: Seen | Mapping[str, Kept]) -> Tensor:
        """The energy (B,), differentiable in `seen.z`; zero for a sample that attends like its reference.

        Args:
            seen: The sample.
            reference: What it is compared with, whole or as `keep` left it.
        """
        ours = seen.records[self.needs[0]]
        kept = self.keep(reference) if isinstance(reference, Seen) else reference
        if isinstance(kept, Seen):
            theirs = kept.records[self.needs[0]]
            per_layer = [
                layer_energy(ours[name], maps, primary(maps, self.config.top, self.config.ties))
                for name, maps in theirs.items()
            ]
        else:
            per_layer = [
                (one.values.detach() - ours[name].gather(-1, one.index.long())).square().flatten(1).mean(dim=1)
                for name, one in kept.items()
            ]
        return torch.stack(per_layer).mean(dim=0)


def largest(maps: Tensor, top: int = 1) -> Kept:
    """The `top` largest entries of each attention row (..., F, F); of equal ones those of the earliest frames."""
    top = min(top, maps.shape[-1])
    if top == 1:
        index = maps.argmax(dim=-1, keepdim=True)
    else:
        index = maps.sort(dim=-1, descending=True, stable=True).indices[..., :top]
    return Kept(values=maps.gather(-1, index), index=index.to(torch.uint8) if maps.shape[-1] <= 256 else index)


def primary(maps: Tensor, top: int = 1, ties: str = "first") -> Tensor:
    """The mask of the `top` largest entries of each attention row.

    Args:
        maps: Attention probabilities (..., F, F), float32 at least: lower precisions make ties.
        top: Entries per row; more than F takes the whole row.
        ties: "first" keeps exactly `top` entries, of equal ones those of the earliest frames; "all" keeps every entry
            that is at least the `top`-th largest (Eq. 7).

    Returns:
        bool, like `maps`.
    """
    top = min(top, maps.shape[-1])
    if ties == "all":
        return maps >= maps.topk(top, dim=-1).values[..., -1:]
    if ties != "first":
        raise ValueError(f"ties must be 'first' or 'all': {ties!r}")
    return torch.zeros_like(maps, dtype=torch.bool).scatter(-1, largest(maps, top).index.long(), True)


def layer_energy(maps: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """Mean over the masked entries of one layer's (reference - maps)^2, per sample: (B, N, F, F) to (B,)."""
    squares = (reference.detach() - maps).square() * mask
    return squares.flatten(1).sum(dim=1) / mask.flatten(1).sum(dim=1)
