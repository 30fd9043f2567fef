"""Float32 master weights of a network that may compute in another dtype, and their moving average."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from guidedcd.acceleration.precision import cast

CHUNK = 64
"""Gradients that are cast to float32 together; the network's own are freed before the next chunk."""


class MasterWeights:
    """The trained parameters of a network, by name.

    Without `dtype` the optimiser updates the network's own parameters. With it the network computes in that dtype, and
    `masters` are float32: most updates of AdamW are smaller than half a unit in the last place of bfloat16, and would
    be lost (Micikevicius et al. 2018, "Mixed Precision Training").
    `guidedcd.training.sharded_weights.ShardedWeights` does the same for a network that is sharded over processes.

    Args:
        network: Its parameters that require a gradient are trained. Cast to `dtype` in place.
        dtype: Dtype of the network's weights; None leaves them unchanged.
        decay: Decay of the exponential moving average per step, in [0, 1]; None keeps no average.
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
        self.working, self.masters = self._split(network, dtype)
        self._target: Sequence[Tensor] = ()
        self.average: list[Tensor] | None = None
        if target is not None:
            self._target, self.average = self._split(target, dtype)
        elif decay is not None:
            self.average = [master.detach().clone() for master in self.masters]

    @torch.no_grad()
    def collect(self) -> None:
        """After a backward pass: add the network's gradients to the masters', in float32."""
        if self.masters is self.working:
            return
        for start in range(0, len(self.masters), CHUNK):
            chunk = slice(start, start + CHUNK)
            into: list[Tensor] = []
            gradients: list[Tensor] = []
            for working, master in zip(self.working[chunk], self.masters[chunk], strict=True):
                if working.grad is None:
                    continue
                if master.grad is None:
                    master.grad = torch.empty_like(master)
                    into.append(master.grad)
                    gradients.append(working.grad)
                else:
                    master.grad += working.grad
                working.grad = None
            copy_all(into, gradients)

    def clip(self, max_norm: float) -> Tensor:
        """Scale the masters' gradients to a total norm of at most `max_norm`; returns the norm before."""
        return torch.nn.utils.clip_grad_norm_(self.masters, max_norm)

    @torch.no_grad()
    def publish(self) -> None:
        """After an optimiser step: update the average, and copy the weights to the network and the target."""
        self._copy(self.working, self.masters)
        if self.average is None or self.decay is None:
            return
        torch._foreach_lerp_(self.average, self.masters, 1 - self.decay)
        self._copy(self._target, self.average)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the network holds the average, where there is one."""
        if self.average is None:
            yield
            return
        self._load(self.average)
        try:
            yield
        finally:
            self._load(self.masters)

    def state(self, *, averaged: bool = False) -> dict[str, Tensor]:
        """The float32 weights or their average by name, whole and on the CPU; to be called in every process."""
        values = self.average if averaged else self.masters
        if values is None:
            raise ValueError("these weights have no average")
        whole = ((name, self.whole(n, values[n].detach())) for n, name in enumerate(self.names))
        return {name: value.cpu().contiguous() for name, value in whole}

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], average: Mapping[str, Tensor] | None = None) -> None:
        """Load weights, and their average, as `state` returns them.

        Raises:
            KeyError: A weight is missing.
            RuntimeError: A shape differs.
        """
        for values, state in ((self.masters, weights), (self.average, average)):
            if values is not None and state is not None:
                for n, name in enumerate(self.names):
                    values[n].copy_(self.own(n, state[name]))
        self._copy(self.working, self.masters)
        if self.average is not None:
            self._copy(self._target, self.average)

    def whole(self, number: int, value: Tensor) -> Tensor:
        """The tensor of all processes together, from this process's `value` like master `number`."""
        return value

    def own(self, number: int, value: Tensor) -> Tensor:
        """This process's shard of a tensor like the whole of master `number`."""
        return value

    def _split(self, network: nn.Module, dtype: torch.dtype | None) -> tuple[list[Tensor], list[Tensor]]:
        """The trained parameters of the network, cast to `dtype`, and in float32; one list where both are the same."""
        parameters = dict(network.named_parameters())
        working: list[Tensor] = [parameters[name] for name in self.names]
        if dtype is None or all(p.dtype == dtype for p in parameters.values()):
            return working, working
        masters = [p.detach().float() for p in working]  # no copy: what is cast gets new tensors
        cast(network, dtype)
        # What stays in float32 is not cast: without a copy, loading the average would lose the master.
        pairs = zip(working, masters, strict=True)
        masters = [m.clone() if m.data_ptr() == p.data_ptr() and not m.is_meta else m for p, m in pairs]
        return working, masters

    def _copy(self, into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Copy float32 weights to the parameters of a network, unless the two are the same."""
        if into and into is not values:
            copy_all(into, values)

    @torch.no_grad()
    def _load(self, values: Sequence[Tensor]) -> None:
        """Load the average into the network, or the weights back into it: the calls alternate."""
        if self.masters is self.working:
            self._exchange()
        else:
            self._copy(self.working, values)

    @torch.no_grad()
    def _exchange(self) -> None:
        """Swap weights and average, one tensor at a time: a second copy of all of them may not fit."""
        assert self.average is not None  # `averaged` is the only caller
        for weight, mean in zip(self.masters, self.average, strict=True):
            before = weight.clone()
            weight.copy_(mean)
            mean.copy_(before)


def copy_all(into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy tensors into others of the same shapes, all of the same two dtypes together.

    PyTorch copies a list of one dtype in few launches, and one of several dtypes tensor by tensor: a network with a few
    float32 layers among bfloat16 ones would cost the host thousands of launches a step.
    """
    groups: dict[tuple[torch.dtype, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
    for one, value in zip(into, values, strict=True):
        ones, others = groups.setdefault((one.dtype, value.dtype), ([], []))
        ones.append(one)
        others.append(value)
    for ones, others in groups.values():
        torch._foreach_copy_(ones, others)
