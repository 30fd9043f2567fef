"""The weights of a network that is spread over processes with FSDP2: every process optimises its own part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from guidedcd.training.master_weights import MasterWeights


class ShardedWeights(MasterWeights):
    """`MasterWeights` of a network after `parallel.shard`.

    Its large parameters are DTensors, the others whole in every process. `masters` are plain tensors, the own parts of
    the former and float32 copies of the latter: a host needs twice as long to launch an optimiser's step of DTensors.
    """

    def __init__(self, network: nn.Module, *, target: nn.Module | None = None, **options: Any) -> None:
        super().__init__(network, target=target, **options)
        networks = [one for one in (network, target) if one is not None]
        self._blocks = [block for one in networks for block in one.modules() if isinstance(block, FSDPModule)]
        self._is_part = [isinstance(working, DTensor) for working in self.working]
        # All processes of the one mesh. With adapters, the trained parameters may all be whole.
        self._group = next(p.device_mesh for p in network.parameters() if isinstance(p, DTensor)).get_group()
        self._joint: tuple[list[int], Tensor] | None = None
        """Which whole parameters have a gradient in this step, and all of these in one tensor."""

    @torch.no_grad()
    def collect(self) -> None:
        """After a backward pass: add gradients to the masters'; those of whole parameters are averaged here first."""
        given = [working.grad for working in self.working]
        whole = [n for n, gradient in enumerate(given) if gradient is not None and not self._is_part[n]]
        if whole:
            self._collect_whole(whole, [given[n] for n in whole])
        for n, gradient in enumerate(given):
            if gradient is None:
                continue
            self.working[n].grad = None
            if self._is_part[n]:
                _add(self.masters[n], gradient.to_local())

    def _collect_whole(self, numbers: list[int], gradients: Sequence[Tensor]) -> None:
        """Average gradients over the processes in one exchange, and keep them in one piece: the host has less to do."""
        masters = [self.masters[n] for n in numbers]
        joint = torch.cat([gradient.flatten() for gradient in gradients]).to(masters[0].dtype)
        distributed.all_reduce(joint, group=self._group)
        joint /= distributed.get_world_size(self._group)
        if self._joint is not None and self._joint[0] == numbers:
            self._joint[1].add_(joint)
            return
        self._joint = (numbers, joint) if all(master.grad is None for master in self.masters) else None
        for master, gradient in zip(masters, joint.split([master.numel() for master in masters]), strict=True):
            _add(master, gradient.view(master.shape))

    @torch.no_grad()
    def clip(self, max_norm: float) -> Tensor:
        """Shorten the gradients of all processes together to `max_norm`; returns how long they were."""
        given = [(m.grad, part) for m, part in zip(self.masters, self._is_part, strict=True) if m.grad is not None]
        parts = [gradient for gradient, part in given if part]
        whole = [gradient for gradient, part in given if not part] if self._joint is None else [self._joint[1]]
        squares = torch.nn.utils.get_total_norm(parts).square().to(self.masters[0].device)
        distributed.all_reduce(squares, group=self._group)
        norm = (squares + torch.nn.utils.get_total_norm(whole).square().to(squares.device)).sqrt()
        # As `clip_grads_with_norm_`, which takes parameters.
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradients in (parts, whole):
            if gradients:
                torch._foreach_mul_(gradients, factor)
        return norm

    @torch.no_grad()
    def publish(self) -> None:
        """After an optimiser step: move the average, and take the network apart, whose weights are those of before."""
        self._joint = None
        super().publish()

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


def _add(master: Tensor, gradient: Tensor) -> None:
    if master.grad is None:
        master.grad = gradient.to(master.dtype)
    else:
        master.grad += gradient
