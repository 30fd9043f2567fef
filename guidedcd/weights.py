"""The weights in training as the optimiser sees them: float32, whatever the network computes in, and their average."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

CHUNK = 64
"""Gradients that are widened together: the narrow ones of a chunk are freed before the next."""


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is spread over processes as one, in every process; others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor on the device of `like`, over processes as that is."""
    tensor = tensor.to(like.device, like.dtype)
    return distribute_tensor(tensor, like.device_mesh, like.placements) if isinstance(like, DTensor) else tensor


class Weights:
    """The trained parameters of a network, by name.

    Without `dtype` the network's own parameters are what the optimiser updates. With it the network computes in that
    dtype, and `masters` are float32: a step of AdamW is mostly smaller than half a bit of bfloat16, and would be lost.

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
        self.working, self.masters = _lowered(network, self.names, dtype)
        self._target: Sequence[Tensor] = ()
        self.average: list[Tensor] | None = None
        if target is not None:
            self._target, self.average = _lowered(target, self.names, dtype)
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

    @torch.no_grad()
    def publish(self) -> None:
        """After an optimiser step: move the average, and give the network and the target their new weights."""
        if self.masters is not self.working:
            torch._foreach_copy_(self.working, self.masters)
        if self.average is None or self.decay is None:
            return
        torch._foreach_lerp_([_local(a) for a in self.average], [_local(m) for m in self.masters], 1 - self.decay)
        if self._target is not self.average and self._target:
            torch._foreach_copy_(self._target, self.average)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the network holds the average, where there is one."""
        if self.average is None:
            yield
            return
        if self.masters is not self.working:
            with torch.no_grad():
                torch._foreach_copy_(self.working, self.average)
            try:
                yield
            finally:
                with torch.no_grad():
                    torch._foreach_copy_(self.working, self.masters)
            return
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Swap weights and average, one tensor at a time: a second copy of all of them may not fit."""
        for weight, mean in zip(self.working, self.average, strict=True):
            weight, mean = _local(weight), _local(mean)
            kept = weight.clone()
            weight.copy_(mean)
            mean.copy_(kept)

    def state(self, *, averaged: bool = False) -> dict[str, Tensor]:
        """Float32 weights, or their average, by name, whole and on the CPU; to be called in every process."""
        values = self.average if averaged else self.masters
        return {name: whole(v.detach()).cpu().contiguous() for name, v in zip(self.names, values, strict=True)}

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], average: Mapping[str, Tensor] | None = None) -> None:
        """Take what `state` gave.

        Raises:
            KeyError: A weight is missing.
            RuntimeError: A shape differs.
        """
        for values, found in ((self.masters, weights), (self.average, average)):
            if values is not None and found is not None:
                for name, value in zip(self.names, values, strict=True):
                    value.copy_(spread(found[name], value))
        if self.masters is not self.working:
            torch._foreach_copy_(self.working, self.masters)
        if self.average is not None and self._target and self._target is not self.average:
            torch._foreach_copy_(self._target, self.average)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _lowered(network: nn.Module, names: Sequence[str], dtype: torch.dtype | None) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters `names` as they compute, and in float32: the same ones where the network needs no change."""
    found = dict(network.named_parameters())
    working = [found[name] for name in names]
    if dtype is None or all(p.dtype == dtype for p in found.values()):
        return working, working
    masters = [p.detach().float() for p in working]  # no copy: the network gets new tensors
    nn.Module.to(network, dtype)  # the class's own may warn about layers that it has none of
    return working, masters
