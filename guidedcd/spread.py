"""The weights of a network that is spread over processes with FSDP2: every process optimises its own part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from guidedcd.weights import Weights


class Spread(Weights):
    """`Weights` of a network after `parallel.shard`.

    Its large parameters are DTensors, its vectors whole in every process. `masters` are plain tensors, the own parts of
    the former and float32 copies of the latter: a host needs twice as long to launch an optimiser's step of DTensors.
    """

    def __init__(self, network: nn.Module, *, target: nn.Module | None = None, **options: Any) -> None:
        super().__init__(network, target=target, **options)
        networks = [one for one in (network, target) if one is not None]
        self._blocks = [block for one in networks for block in one.modules() if isinstance(block, FSDPModule)]
        self._is_part = [isinstance(working, DTensor) for working in self.working]
        # All processes of the mesh, which is the same for every parameter.
        self._group = next(w.device_mesh for w in self.working if isinstance(w, DTensor)).get_group()

    @torch.no_grad()
    def collect(self) -> None:
        """After a backward pass: add gradients to the masters'; those of whole parameters are averaged here first."""
        means = self._means()
        for n, (working, master) in enumerate(zip(self.working, self.masters, strict=True)):
            if working.grad is None:
                continue
            gradient = working.grad.to_local() if self._is_part[n] else means[n]
            working.grad = None
            if master.grad is None:
                master.grad = gradient.to(master.dtype)
            else:
                master.grad += gradient

    def _means(self) -> dict[int, Tensor]:
        """Float32 gradients of whole parameters by number, averaged over the processes in one exchange."""
        plain = {n: w for n, w in enumerate(self.working) if not self._is_part[n] and w.grad is not None}
        if not plain:
            return {}
        flat = torch.cat([w.grad.flatten().float() for w in plain.values()])
        distributed.all_reduce(flat, group=self._group)
        parts = (flat / distributed.get_world_size(self._group)).split([w.numel() for w in plain.values()])
        return {n: part.view_as(w) for (n, w), part in zip(plain.items(), parts, strict=True)}

    @torch.no_grad()
    def clip(self, max_norm: float) -> Tensor:
        """Shorten the gradients of all processes together to `max_norm`; returns how long they were."""
        gradients = {n: m.grad for n, m in enumerate(self.masters) if m.grad is not None}
        parts, plain = ([g for n, g in gradients.items() if self._is_part[n] == part] for part in (True, False))
        squares = torch.nn.utils.get_total_norm(parts).square().to(self.masters[0].device)
        distributed.all_reduce(squares, group=self._group)
        norm = (squares + torch.nn.utils.get_total_norm(plain).square().to(squares.device)).sqrt()
        torch.nn.utils.clip_grads_with_norm_(self.masters, max_norm, norm)
        return norm

    def whole(self, number: int, value: Tensor) -> Tensor:
        """A tensor like master `number` as that of all processes together; to be called in every process."""
        like = self.working[number]
        if not self._is_part[number]:
            return value
        about = {"run_check": False, "shape": like.shape, "stride": like.stride()}
        return DTensor.from_local(value, like.device_mesh, like.placements, **about).full_tensor()

    def part(self, number: int, value: Tensor) -> Tensor:
        """Of a tensor like the whole of master `number`, what belongs to this process."""
        like = self.working[number]
        if not self._is_part[number]:
            return value
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements).to_local()

    def _taken(self, network: nn.Module, dtype: torch.dtype | None) -> tuple[list[Tensor], list[Tensor]]:
        found = dict(network.named_parameters())
        working, masters = [found[name] for name in self.names], []
        for parameter in working:
            part = isinstance(parameter, DTensor)
            own = parameter.to_local().detach() if part else parameter.detach()
            masters.append(own if part or dtype in (None, own.dtype) else own.float())
        for parameter in found.values():
            if dtype is not None and not isinstance(parameter, DTensor):
                parameter.data = parameter.data.to(dtype)  # the others are narrow where they are put together
        return working, masters

    def _give(self, into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        # Parts, and vectors that compute in float32, are the network's own memory.
        pairs = [(i, v) for i, v in zip(into, values, strict=True) if i.dtype != v.dtype] if into else []
        if pairs:
            torch._foreach_copy_([i for i, _ in pairs], [v for _, v in pairs])
        for block in self._blocks:
            block.reshard()  # a network that was put together for a forward pass alone still has its weights of then

    @torch.no_grad()
    def _show(self, values: Sequence[Tensor]) -> None:
        self._exchange()
        self._give(self.working, self.masters)
