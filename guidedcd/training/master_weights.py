"""The weights in training as the optimiser sees them: float32, whatever the network computes in, and their average."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

CHUNK = 64
"""Gradients that are widened together: the narrow ones of a chunk are freed before the next."""


class MasterWeights:
    """The trained parameters of a network, by name.

    Without `dtype` the network's own parameters are what the optimiser updates. With it the network computes in that
    dtype, and `masters` are float32: a step of AdamW is mostly smaller than half a bit of bfloat16, and would be lost.
    `guidedcd.training.sharded_weights.ShardedWeights` is the same for a network of which every process has a part.

    Args:
        network: Its parameters that require a gradient are trained. Changed to `dtype` in place.
        dtype: What the network computes in; None leaves it as it is.
        decay: Of the average after every step; None keeps none.
        target: A copy of the network that always holds the average.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        dtype: torch.dtype | None = None,
        decay: float | None = None,
        target: nn.Module | None = None,
    ) -> None:
        self.names = tuple(name for name, p in network.named_parameters() if p.requires_grad)
        self.decay = decay
        self.working, self.masters = self._taken(network, dtype)
        self._target: Sequence[Tensor] = ()
        self.average: list[Tensor] | None = None
        if target is not None:
            self._target, self.average = self._taken(target, dtype)
        elif decay is not None:
            self.average = [master.detach().clone() for master in self.masters]

    @torch.no_grad()
    def collect(self) -> None:
        """After a backward pass: add the network's gradients to the masters', in float32."""
        if self.masters is self.working:
            return
        for start in range(0, len(self.masters), CHUNK):
            part = slice(start, start + CHUNK)
            fresh = []
            for working, master in zip(self.working[part], self.masters[part], strict=True):
                if working.grad is None:
                    continue
                if master.grad is None:
                    fresh.append((working, master))
                    continue
                master.grad += working.grad
                working.grad = None
            for _, master in fresh:
                master.grad = torch.empty_like(master)
            if fresh:
                torch._foreach_copy_([master.grad for _, master in fresh], [working.grad for working, _ in fresh])
            for working, _ in fresh:
                working.grad = None

    def clip(self, max_norm: float) -> Tensor:
        """Shorten the masters' gradients to `max_norm` where they are longer; returns how long they were."""
        return torch.nn.utils.clip_grad_norm_(self.masters, max_norm)

    @torch.no_grad()
    def publish(self) -> None:
        """After an optimiser step: move the average, and give the network and the target their new weights."""
        self._give(self.working, self.masters)
        if self.average is None or self.decay is None:
            return
        torch._foreach_lerp_(self.average, self.masters, 1 - self.decay)
        self._give(self._target, self.average)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the network holds the average, where there is one."""
        if self.average is None:
            yield
            return
        self._show(self.average)
        try:
            yield
        finally:
            self._show(self.masters)

    def state(self, *, averaged: bool = False) -> dict[str, Tensor]:
        """Float32 weights, or their average, by name, whole and on the CPU; to be called in every process."""
        values = self.average if averaged else self.masters
        found = ((name, self.whole(n, values[n].detach())) for n, name in enumerate(self.names))
        return {name: value.cpu().contiguous() for name, value in found}

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], average: Mapping[str, Tensor] | None = None) -> None:
        """Take what `state` gave.

        Raises:
            KeyError: A weight is missing.
            RuntimeError: A shape differs.
        """
        for values, found in ((self.masters, weights), (self.average, average)):
            if values is not None and found is not None:
                for n, name in enumerate(self.names):
                    values[n].copy_(self.part(n, found[name]))
        self._give(self.working, self.masters)
        if self.average is not None:
            self._give(self._target, self.average)

    def whole(self, number: int, value: Tensor) -> Tensor:
        """A tensor like master `number` as that of all processes together."""
        return value

    def part(self, number: int, value: Tensor) -> Tensor:
        """Of a tensor like the whole of master `number`, what belongs to this process."""
        return value

    def _taken(self, network: nn.Module, dtype: torch.dtype | None) -> tuple[list[Tensor], list[Tensor]]:
        """The trained parameters as a network computes with them, and in float32; the same where that is the same."""
        found = dict(network.named_parameters())
        working = [found[name] for name in self.names]
        if dtype is None or all(p.dtype == dtype for p in found.values()):
            return working, working
        masters = [p.detach().float() for p in working]  # no copy: the network gets new tensors
        nn.Module.to(network, dtype)  # the class's own may warn about layers that it has none of
        return working, masters

    def _give(self, into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Copy float32 weights to the parameters of a network, unless they are those."""
        if into and into is not values:
            torch._foreach_copy_(into, values)

    @torch.no_grad()
    def _show(self, values: Sequence[Tensor]) -> None:
        """Let the network have the average, or what it is the average of, each in its turn."""
        if self.masters is self.working:
            self._exchange()
        else:
            self._give(self.working, values)

    @torch.no_grad()
    def _exchange(self) -> None:
        """Swap weights and average, one tensor at a time: a second copy of all of them may not fit."""
        for weight, mean in zip(self.masters, self.average, strict=True):
            kept = weight.clone()
            weight.copy_(mean)
            mean.copy_(kept)
