"""Training in several processes: each has a copy of the student (DDP) or a shard of it (FSDP2).

accelerate starts the processes. FSDP2 is torch's own `fully_shard`, because accelerate offers FSDP2 on GPUs alone and
the tests run on CPUs.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from guidedcd.acceleration.precision import GATHERED, stays
from guidedcd.config.run import Run
from guidedcd.devices import dtype_of_precision, process
from guidedcd.errors import GuidedCDError
from guidedcd.models.student import Student
from guidedcd.training.master_weights import MasterWeights
from guidedcd.training.sharded_weights import ShardedWeights

WHOLE = 1 / 16
"""Share of a network's weights that FSDP2 leaves whole in every process: those in its smallest parameters."""
GROUP = 1 / 12
"""Smallest share of a network's weights that is gathered at once: each gathering costs the host milliseconds."""


def weights_dtype(precision: str) -> torch.dtype | None:
    """The dtype of the networks' weights; None leaves them: fp16 autocasts float32 weights."""
    return None if precision == "fp16" else dtype_of_precision(precision)


def accelerator_for(run: Run, where: torch.device) -> Accelerator:
    """An accelerator for the run's precision on a device.

    Raises:
        GuidedCDError: The device or the parallel mode cannot train in that precision, or the variables of a launch of
            several processes are incomplete.
    """
    if process()[1] > 1 and not os.environ.get("MASTER_ADDR"):
        raise GuidedCDError(
            "the environment variable WORLD_SIZE asks for several processes, but MASTER_ADDR is missing. Start them "
            "with torchrun or `accelerate launch`, or unset WORLD_SIZE."
        )
    precision = run.train.precision
    if precision == "fp16" and where.type != "cuda":
        raise GuidedCDError("--train.precision fp16 needs an NVIDIA GPU. Use bf16 or no.")
    if precision == "fp16" and run.train.parallel.mode == "fsdp":
        raise GuidedCDError("--train.parallel.mode fsdp goes with --train.precision bf16 or no, not with fp16.")
    # In bf16 the weights themselves are narrow: autocast would compute every norm in float32, at twice the traffic.
    return Accelerator(
        mixed_precision="fp16" if precision == "fp16" else "no",
        cpu=where.type == "cpu",
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )


def distribute(student: Student, run: Run, accelerator: Accelerator) -> tuple[Any, MasterWeights]:
    """The module that training calls, and the master weights; the student is changed in place.

    DDP and FSDP2 both average gradients over the processes.
    """
    dtype = weights_dtype(run.train.precision)
    decay = run.train.average if run.student.ema is None else run.student.ema
    if accelerator.num_processes > 1 and run.train.parallel.mode == "fsdp":
        device = next(student.network.parameters()).device
        mesh = init_device_mesh(device.type, (accelerator.num_processes,))
        shard(student.network, mesh, dtype, keep=True)
        if student.averaged is not None:
            shard(student.averaged, mesh, dtype)
        return student, ShardedWeights(student.network, dtype=dtype, decay=decay, target=student.averaged)
    weights = MasterWeights(student.network, dtype=dtype, decay=decay, target=student.averaged)
    return (accelerator.prepare(student) if accelerator.num_processes > 1 else student), weights


def shard(network: nn.Module, mesh: Any, dtype: torch.dtype | None, *, keep: bool = False) -> None:
    """Shard a network's float32 weights over the processes of `mesh` with FSDP2.

    Vectors, the smallest matrices up to the share `WHOLE` of all weights, and what stays in float32 are whole in every
    process, and `ShardedWeights` averages their gradients. They are four fifths of all parameters, and a host needs as
    long to gather a small one as a large one.

    Args:
        network: Changed in place.
        mesh: A device mesh of one dimension.
        dtype: Dtype of the gathered weights; None leaves it unchanged. Gradients are reduced in float32.
        keep: Keep gathered weights from the forward pass to the backward pass: a step passes the network three times.
    """
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP2 and the fused optimiser need one layout
    sharded = sharded_parameters(network)
    # The caller casts latents and texts, as for a network in one piece. FSDP2 would round times and angles too.
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32 if dtype else None, cast_forward_inputs=False
    )
    whole = {parameter for parameter in network.parameters() if parameter not in sharded}
    options = {"mesh": mesh, "mp_policy": policy, "reshard_after_forward": not keep, "ignored_params": whole}
    for group in groups(network, sharded):
        fully_shard(group, **options)
    fully_shard(network, **options)
    if dtype is not None:
        setattr(network, GATHERED, dtype)
    if mesh.device_type == "cpu":  # gloo's average of torch 2.8 is a sum
        for module in network.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)


def groups(network: nn.Module, sharded: set[nn.Parameter]) -> list[list[nn.Module]]:
    """Lists of blocks whose `sharded` parameters are gathered together, each with at least the share `GROUP` of them.

    A list contains neighbours of one `ModuleList`. Smaller modules are gathered with the network itself.
    """

    def size(*modules: nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters() if p in sharded)

    smallest = GROUP * size(network)
    lists: list[list[nn.Module]] = []
    for child in network.children():
        own: list[list[nn.Module]] = []
        for block in child if isinstance(child, nn.ModuleList) else [child]:
            if own and size(*own[-1]) < smallest:
                own[-1].append(block)
            else:
                own.append([block])
        if len(own) > 1 and size(*own[-1]) < smallest:
            last = own.pop()
            own[-1] += last
        lists += [group for group in own if size(*group) >= smallest]
    return lists


def sharded_parameters(network: nn.Module) -> set[nn.Parameter]:
    """The parameters of a network that are sharded over the processes: all matrices but the smallest.

    Those that stay in float32 (`precision.stays`) are whole, because FSDP2 gathers all weights in one dtype.
    """
    wide = (p for name, p in network.named_parameters() if p.dim() > 1 and not stays(network, name))
    matrices = sorted(wide, key=lambda p: p.numel())
    left = WHOLE * sum(p.numel() for p in matrices)
    for number, parameter in enumerate(matrices):
        left -= parameter.numel()
        if left < 0:
            return set(matrices[number:])
    return set()
