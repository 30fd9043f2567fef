"""Attention motion flow, after DiTFlow (arXiv:2412.07776): the displacement of attention between frames.

Written from the formula of the paper. The logits of a pair of frames are L_fg(p, q) = mean over heads of
q_f(p) k_g(q) / sqrt(D). With P = softmax over q of `temperature` L_fg, the displacement is D_fg(p) = sum over q of
P(p, q) (q - p), in tokens. The reference's displacement is that to the largest logit. The energy is the mean of
||D - D_ref||^2 over all pairs and positions with |D_ref| > 0. Pairs are of different frames at most `span` apart.

Legend: B batch, N heads of width D, F frames, S = h w positions, R pairs of frames.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from guidedcd.diffusion.seen import Seen
from guidedcd.errors import GuidedCDError
from guidedcd_attention_energies import AMFConfig


@attrs.frozen(kw_only=True, eq=False)
class Displacements:
    """The displacement from each position of a frame to where another frame's attention is largest."""

    values: Tensor
    """Rows and columns (B, R, S, 2), whole numbers, in the order of `offsets` and then of frames; int16."""


class AMF:
    """Mean squared distance between the displacements of attention and those of the reference; lower is better.

    It is not 0 at the reference: the displacements of the sample are means over a softmax, those of the reference are
    of its largest logit.
    """

    records_only = True
    """The energy reads no prediction, so that forward passes may end at the record."""

    def __init__(self, config: AMFConfig) -> None:
        """Take the options."""
        self.config = config
        self.needs = ("self-attention" if config.block is None else f"self-attention:{config.block}",)

    def keep(self, reference: Seen) -> Displacements:
        """The displacements of a reference to its largest logits."""
        queries, keys, width = self._tokens(reference)
        with torch.no_grad():
            values = by_offset(queries, keys, self.config.span, lambda q, k: largest(q, k, width))
        return Displacements(values=values.to(torch.int16))

    def __call__(self, seen: Seen, reference: Seen | Displacements) -> Tensor:
        """The energy (B,), in squared tokens, differentiable in `seen.z`; 0 where the reference has no displacement.

        Args:
            seen: The forward pass of the sample.
            reference: The forward pass of its reference, or what `keep` returned of it.
        """
        target = reference if isinstance(reference, Displacements) else self.keep(reference)
        queries, keys, width = self._tokens(seen)
        temperature = self.config.temperature

        def displacement(q: Tensor, k: Tensor) -> Tensor:
            # A pair has S x S logits. They are computed again for the gradient, so that one offset is kept at a time.
            if not q.requires_grad:
                return expected(q, k, width, temperature)
            return checkpoint(expected, q, k, width, temperature, use_reentrant=False, preserve_rng_state=False)

        own = by_offset(queries, keys, self.config.span, displacement)
        mask = (target.values != 0).any(-1)
        squares = (own - target.values.to(own.dtype)).square().sum(-1) * mask
        return squares.flatten(1).sum(1) / mask.flatten(1).sum(1).clamp_min(1)

    def _tokens(self, seen: Seen) -> tuple[Tensor, Tensor, int]:
        """Queries over sqrt(D) N and keys (B, F, S, N D), whose products are the logits, and the grid's width."""
        record = seen.records[self.needs[0]]
        queries, keys = record["queries"], record["keys"]
        _, heads, frames, _, columns, size = queries.shape
        if frames < 2:
            raise GuidedCDError("amf compares latent frames, and this video has one alone: use more frames.")
        dtype = torch.promote_types(queries.dtype, torch.float32)
        scale = 1 / (heads * size**0.5)
        # The mean over heads of products is one product of all heads' channels.
        queries, keys = (x.to(dtype).flatten(3, 4).permute(0, 2, 3, 1, 4).flatten(3) for x in (queries, keys))
        return queries * scale, keys, columns


def by_offset(queries: Tensor, keys: Tensor, span: int, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A function of the frames of each pair, (B, R, S, 2).

    Args:
        queries: (B, F, S, C).
        keys: Like `queries`.
        span: The largest distance of the frames of a pair.
        function: Receives the queries and keys of all pairs at one distance and direction, (B, n, S, C) each, and
            returns (B, n, S, 2).
    """
    frames = queries.shape[1]
    values = []
    for offset in offsets(frames, span):
        first, last = max(0, -offset), frames - max(0, offset)
        values.append(function(queries[:, first:last], keys[:, first + offset : last + offset]))
    return torch.cat(values, dim=1)


def offsets(frames: int, span: int) -> list[int]:
    """The distances g - f of compared frames, for example -2, -1, 1, 2."""
    most = min(span, frames - 1)
    return [offset for offset in range(-most, most + 1) if offset]


def expected(queries: Tensor, keys: Tensor, width: int, temperature: float) -> Tensor:
    """Expected displacements (B, n, S, 2) of softmax attention, in rows and columns.

    Args:
        queries: (B, n, S, C), scaled.
        keys: Like `queries`.
        width: Positions in a row of the grid.
        temperature: Factor of the logits.
    """
    where = positions(queries.shape[2], width, queries)
    probabilities = (temperature * queries @ keys.transpose(-1, -2)).softmax(-1)
    return probabilities @ where - where


def largest(queries: Tensor, keys: Tensor, width: int) -> Tensor:
    """Displacements (B, n, S, 2) to the largest logit, of equal ones the first; arguments as those of `expected`."""
    where = positions(queries.shape[2], width, queries)
    return where[(queries @ keys.transpose(-1, -2)).argmax(-1)] - where


def positions(count: int, width: int, like: Tensor) -> Tensor:
    """Rows and columns (S, 2) of positions that are numbered row by row."""
    index = torch.arange(count, device=like.device)
    return torch.stack([index // width, index % width], dim=-1).to(like.dtype)
