"""What each reward of a training step costs and contributes: its time, and its share of the gradient on the frames.

A reward's gradient on the frames that it reads is computed in the backward pass in any case. A hook reads its norm
there, so that the shares need no second backward pass.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from guidedcd.devices import Stopwatch


class RewardMeter:
    """Measures the rewards of a step, between its forward pass and the end of its backward pass.

    Args:
        stopwatch: Times every reward's forward pass as part `reward:NAME`; None times nothing.
    """

    def __init__(self, stopwatch: Stopwatch | None = None) -> None:
        self.stopwatch = stopwatch
        self._squares: dict[str, Tensor] = {}

    def part(self, name: str) -> AbstractContextManager[None]:
        """Times a reward's forward pass."""
        return nullcontext() if self.stopwatch is None else self.stopwatch.part(f"reward:{name}")

    def watch(self, name: str, frames: Tensor) -> Tensor:
        """The frames (b, k, 3, H, W) that one reward alone reads, whose gradient is noted in the backward pass."""
        if not frames.requires_grad:
            return frames
        own = frames.view_as(frames)
        own.register_hook(functools.partial(self._note, name))
        return own

    def shares(self) -> dict[str, Tensor]:
        """By reward, the norm of its gradient on the frames divided by the sum of these norms; NaN where all are 0.

        The weights of the rewards are in the gradients. Rewards that read latents, or have weight 0, have no share.
        To be called after a backward pass; the next call begins anew.
        """
        norms = {name: square.sqrt() for name, square in self._squares.items()}
        self._squares = {}
        if not norms:
            return {}
        total = torch.stack(list(norms.values())).sum()
        return {name: norm / total for name, norm in norms.items()}

    def _note(self, name: str, gradient: Tensor) -> None:
        # No copy as large as the frames at the peak of the backward pass.
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        square = torch.linalg.vector_norm(gradient.detach(), dtype=dtype).square()
        self._squares[name] = self._squares[name] + square if name in self._squares else square
