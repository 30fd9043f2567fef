"""Master weights of a network that FSDP2 shards over processes: every process optimises its own shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from guidedcd.acceleration.precision import cast_buffers, stays
from guidedcd.training.master_weights import MasterWeights, copy_all


class ShardedWeights(MasterWeights):
    """`MasterWeights` of a network after `distributed.shard`.

    The network's large parameters are DTensors; the others are whole in every process. `masters` are plain tensors:
    the local shards of the former, and float32 copies of the latter. A host needs twice as long to launch an optimiser
    step of DTensors.

    Args:
        network: See `MasterWeights`.
        target: See `MasterWeights`; sharded like `network`.
        options: `dtype` and `decay`, see `MasterWeights`.
    """

    def __init__(self, network: nn.Module, *, target: nn.Module | None = None, **options: Any) -> None:
        super().__init__(network, target=target, **options)
        networks = [one for one in (network, target) if one is not None]
        self._blocks = [block for one in networks for block in one.modules() if isinstance(block, FSDPModule)]
        # All processes of the one mesh. With adapters, the trained parameters may all be whole.
        self._group = next(p.device_mesh for p in network.parameters() if isinstance(p, DTensor)).get_group()
        self._joint: tuple[list[int], Tensor] | None = None
        """The whole parameters that have a gradient in this step, and these gradients in one flat tensor."""

    @torch.no_grad()
    def collect(self) -> None:
        """After a backward pass: add gradients to the masters', those of whole parameters averaged over processes."""
        whole: dict[int, Tensor] = {}
        sharded: dict[int, DTensor] = {}
        for number, working in enumerate(self.working):
            gradient = working.grad
            if isinstance(gradient, DTensor):
                sharded[number] = gradient
            elif gradient is not None:
                whole[number] = gradient
        if whole:
            self._collect_whole(whole)
        for number in (*whole, *sharded):
            self.working[number].grad = None
        for number, gradient in sharded.items():
            _add(self.masters[number], gradient.to_local())

    def _collect_whole(self, gradients: dict[int, Tensor]) -> None:
        """Average gradients over the processes in one exchange, and keep them in one tensor, which launches less."""
        numbers = list(gradients)
        masters = [self.masters[number] for number in numbers]
        joint = torch.cat([gradient.flatten() for gradient in gradients.values()]).to(masters[0].dtype)
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
        """Scale the gradients of all processes to a total norm of at most `max_norm`; returns the norm before."""
        sharded: list[Tensor] = []
        whole: list[Tensor] = []
        for working, master in zip(self.working, self.masters, strict=True):
            if master.grad is not None:
                (sharded if isinstance(working, DTensor) else whole).append(master.grad)
        if self._joint is not None:
            whole = [self._joint[1]]
        squares = torch.nn.utils.get_total_norm(sharded).square().to(self.masters[0].device)
        distributed.all_reduce(squares, group=self._group)
        norm = (squares + torch.nn.utils.get_total_norm(whole).square().to(squares.device)).sqrt()
        # As torch's `clip_grads_with_norm_`, which takes parameters.
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradients in (sharded, whole):
            if gradients:
                torch._foreach_mul_(gradients, factor)
        return norm

    @torch.no_grad()
    def publish(self) -> None:
        """After an optimiser step: update the average, and free gathered weights, which are those before the step."""
        self._joint = None
        super().publish()

    def whole(self, number: int, value: Tensor) -> Tensor:
        """The tensor of all processes together, from this process's `value`; to be called in every process."""
        working = self.working[number]
        if not isinstance(working, DTensor):
            return value
        return DTensor.from_local(
            value,
            working.device_mesh,
            working.placements,
            run_check=False,
            shape=working.shape,
            stride=working.stride(),
        ).full_tensor()

    def own(self, number: int, value: Tensor) -> Tensor:
        """This process's shard of a tensor like the whole of master `number`."""
        working = self.working[number]
        if not isinstance(working, DTensor):
            return value
        return distribute_tensor(value.to(working.device), working.device_mesh, working.placements).to_local()

    def _split(self, network: nn.Module, dtype: torch.dtype | None) -> tuple[list[Tensor], list[Tensor]]:
        parameters = dict(network.named_parameters())
        working: list[Tensor] = [parameters[name] for name in self.names]
        masters: list[Tensor] = []
        for parameter in working:
            if isinstance(parameter, DTensor):
                masters.append(parameter.to_local().detach())
            else:
                local = parameter.detach()
                masters.append(local if dtype in (None, local.dtype) else local.float())
        for name, whole in parameters.items():
            if dtype is not None and not isinstance(whole, DTensor) and not stays(network, name):
                whole.data = whole.data.to(dtype)  # FSDP2 casts the others where it gathers them
        if dtype is not None:
            cast_buffers(network, dtype)
        return working, masters

    def _copy(self, into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        # Shards, and vectors that compute in float32, share the network's memory.
        pairs = [(i, v) for i, v in zip(into, values, strict=True) if i.dtype != v.dtype] if into else []
        copy_all([i for i, _ in pairs], [v for _, v in pairs])
        for block in self._blocks:
            block.reshard()  # after a forward pass without a backward one, a block still holds gathered weights

    @torch.no_grad()
    def _load(self, values: Sequence[Tensor]) -> None:
        self._exchange()
        self._copy(self.working, self.masters)


def _add(master: Tensor, gradient: Tensor) -> None:
    if master.grad is None:
        master.grad = gradient.to(master.dtype)
    else:
        master.grad += gradient
