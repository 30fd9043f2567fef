"""Primary temporal attention (MotionClone, arXiv:2406.05338; Eq. 6 and 7 of T2V-Turbo-v2, arXiv:2410.05677).

The energy is the squared distance between the largest entries of a reference's attention rows and the same entries of
the sample.

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
class PrimaryEntries:
    """The largest attention probabilities of each row in one layer."""

    values: Tensor
    """Probabilities (B, N, F, top)."""
    index: Tensor
    """Index of the attended frames (B, N, F, top), uint8 if there are at most 256 frames, else int64."""


class PTA:
    """Mean over layers of the mean over masked entries of (reference - generated)^2, per sample; lower is better."""

    records_only = True
    """The energy reads no prediction, so that forward passes may end at the last record."""

    def __init__(self, config: PTAConfig) -> None:
        """Take the options."""
        self.config = config
        self.needs = (f"temporal-attention:{config.layers}",)

    def keep(self, reference: Seen) -> Mapping[str, PrimaryEntries] | Seen:
        """The largest entries of each attention row by layer, or with `ties="all"` the reference itself."""
        if self.config.ties != "first":
            return reference
        return {name: largest(maps, self.config.top) for name, maps in reference.records[self.needs[0]].items()}

    def __call__(self, seen: Seen, reference: Seen | Mapping[str, PrimaryEntries]) -> Tensor:
        """The energy (B,), differentiable in `seen.z`; 0 if the sample attends as its reference does.

        Args:
            seen: The forward pass of the sample.
            reference: The forward pass of its reference, or what `keep` returned of it.
        """
        sample_maps = seen.records[self.needs[0]]
        target = self.keep(reference) if isinstance(reference, Seen) else reference
        if isinstance(target, Seen):
            per_layer = [
                layer_energy(sample_maps[name], maps, primary(maps, self.config.top, self.config.ties))
                for name, maps in target.records[self.needs[0]].items()
            ]
        else:
            per_layer = [
                (entries.values.detach() - sample_maps[name].gather(-1, entries.index.long()))
                .square()
                .flatten(1)
                .mean(1)
                for name, entries in target.items()
            ]
        return torch.stack(per_layer).mean(dim=0)


def largest(maps: Tensor, top: int = 1) -> PrimaryEntries:
    """The `top` largest entries of each attention row (..., F, F); of equal ones, those of the earliest frames."""
    top = min(top, maps.shape[-1])
    if top == 1:
        index = maps.argmax(dim=-1, keepdim=True)
    else:
        index = maps.sort(dim=-1, descending=True, stable=True).indices[..., :top]
    return PrimaryEntries(
        values=maps.gather(-1, index), index=index.to(torch.uint8) if maps.shape[-1] <= 256 else index
    )


def primary(maps: Tensor, top: int = 1, ties: str = "first") -> Tensor:
    """Mask of the `top` largest entries of each attention row.

    Args:
        maps: Attention probabilities (..., F, F), at least float32, as lower precisions produce ties.
        top: Number of entries per row; F or more selects the whole row.
        ties: "first" selects exactly `top` entries, of equal ones those of the earliest frames; "all" selects every
            entry that is at least as large as the `top`-th (Eq. 7).

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
