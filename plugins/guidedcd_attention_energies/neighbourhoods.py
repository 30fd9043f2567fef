"""Primary attention over frames, of attention over space and time: `pta` for video transformers.

At each position s of the token grid, A_s(f, g) is the softmax over frames g of the sum of the logits
q(f, s) k(g, n) / sqrt(D) over the positions n of a square around s. The energy is the mean of (A - A_ref)^2 over the
largest entry of each row of the reference. `pta` does this on networks with attention over frames, where the square is
one position.

Legend: B batch, N heads of width D, F frames, h x w positions.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor
from torch.nn import functional as nnf

from guidedcd.diffusion.seen import Seen
from guidedcd_attention_energies import PTA3DConfig


@attrs.frozen(kw_only=True, eq=False)
class PrimaryEntries:
    """The largest entry of each row of a reference's attention over frames."""

    values: Tensor
    """Probabilities (B, N, h, w, F, 1)."""
    index: Tensor
    """The attended frames, like `values`, int16; of equal entries the first."""


class PTA3D:
    """Mean squared difference of the primary entries of attention over frames; lower is better, 0 at the reference."""

    records_only = True
    """The energy reads no prediction, so that forward passes may end at the record."""

    def __init__(self, config: PTA3DConfig) -> None:
        """Take the options."""
        self.config = config
        self.needs = ("self-attention" if config.block is None else f"self-attention:{config.block}",)

    def keep(self, reference: Seen) -> PrimaryEntries:
        """The primary entries of a reference."""
        with torch.no_grad():
            values, index = self._attention(reference).max(dim=-1, keepdim=True)
        return PrimaryEntries(values=values, index=index.to(torch.int16))

    def __call__(self, seen: Seen, reference: Seen | PrimaryEntries) -> Tensor:
        """The energy (B,), differentiable in `seen.z`.

        Args:
            seen: The forward pass of the sample.
            reference: The forward pass of its reference, or what `keep` returned of it.
        """
        target = reference if isinstance(reference, PrimaryEntries) else self.keep(reference)
        own = self._attention(seen).gather(-1, target.index.long())
        return (own - target.values).square().flatten(1).mean(1)

    def _attention(self, seen: Seen) -> Tensor:
        record = seen.records[self.needs[0]]
        return over_frames(record["queries"], record["keys"], self.config.neighbourhood)


def over_frames(queries: Tensor, keys: Tensor, neighbourhood: int) -> Tensor:
    """Attention over frames at each position (B, N, h, w, F, F), at least float32; rows sum to 1.

    Args:
        queries: (B, N, F, h, w, D).
        keys: Like `queries`.
        neighbourhood: Height and width of the square whose keys count, an odd number; positions outside of the frame
            do not count.
    """
    dtype = torch.promote_types(queries.dtype, torch.float32)
    queries, keys = queries.to(dtype), _square_sums(keys.to(dtype), neighbourhood)
    queries, keys = (x.permute(0, 1, 3, 4, 2, 5) for x in (queries, keys))
    logits = queries * queries.shape[-1] ** -0.5 @ keys.transpose(-1, -2)
    return logits.softmax(-1)


def _square_sums(x: Tensor, size: int) -> Tensor:
    """Sums over squares of positions around each position, (B, N, F, h, w, D) to the same.

    A sum of products with one query is the product with the sum of the keys.
    """
    if size == 1:
        return x
    images = x.flatten(0, 2).permute(0, 3, 1, 2)
    sums = nnf.avg_pool2d(images, size, stride=1, padding=size // 2, divisor_override=1)
    return sums.permute(0, 2, 3, 1).reshape(x.shape)
