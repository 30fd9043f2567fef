"""One process or several: accelerate holds them together; each has a copy of the student (DDP) or a part of it (FSDP2).

FSDP2 is torch's `fully_shard` itself: accelerate offers it on GPUs alone, and this must be tested on CPUs.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from guidedcd.config.run import Run
from guidedcd.devices import dtype_of_precision
from guidedcd.errors import GuidedCDError
from guidedcd.models.student import Student
from guidedcd.training.master_weights import MasterWeights
from guidedcd.training.sharded_weights import ShardedWeights

WHOLE = 1 / 16
"""Part of a network's numbers that FSDP2 leaves whole in every process: those of its smallest parameters."""
GROUP = 1 / 12
"""Least part of a network's numbers that is put together at once: every time costs the host milliseconds."""


def weights_dtype(precision: str) -> torch.dtype | None:
    """The dtype of the networks' weights; None leaves them: fp16 autocasts float32 weights."""
    return None if precision == "fp16" else dtype_of_precision(precision)


def accelerator_for(run: Run, where: torch.device) -> Accelerator:
    """Accelerate on a device, with the run's precision.

    Raises:
        GuidedCDError: The device cannot train in that precision.
    """
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
    """What is called in training, and the weights that are optimised; the student is changed in place.

    Both ways average gradients over the processes.
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
    """Spread a network's float32 weights over the processes of `mesh`, some blocks at a time; it computes in `dtype`.

    Vectors, and the smallest matrices up to `WHOLE` of all numbers, stay whole in every process, and `ShardedWeights`
    averages their gradients. They are four fifths of all parameters, and a host needs as long to gather a small one as
    a large one.

    Args:
        network: Changed in place.
        mesh: Of one dimension.
        dtype: What it computes in; None leaves it as it is. Gradients are reduced in float32.
        keep: Keep what a forward pass has put together until the backward pass: a step passes the network three times.
    """
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()  # no other layout can be spread, nor optimised beside parts
    parts = spread_parameters(network)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if dtype else None)
    whole = {parameter for parameter in network.parameters() if parameter not in parts}
    options = {"mesh": mesh, "mp_policy": policy, "reshard_after_forward": not keep, "ignored_params": whole}
    for group in groups(network, parts):
        fully_shard(group, **options)
    fully_shard(network, **options)


def groups(network: nn.Module, parts: set[nn.Parameter]) -> list[list[nn.Module]]:
    """Blocks of a network whose `parts` are put together at once: each list holds at least `GROUP` of all numbers.

    Neighbours of one list of blocks go together, and what is small on its own with the network's other parameters.
    """

    def numbers(*modules: nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters() if p in parts)

    least, found = GROUP * numbers(network), []
    for child in network.children():
        own: list[list[nn.Module]] = []
        for block in child if isinstance(child, nn.ModuleList) else [child]:
            if own and numbers(*own[-1]) < least:
                own[-1].append(block)
            else:
                own.append([block])
        if len(own) > 1 and numbers(*own[-1]) < least:
            last = own.pop()
            own[-1] += last
        found += [group for group in own if numbers(*group) >= least]
    return found


def spread_parameters(network: nn.Module) -> set[nn.Parameter]:
    """The parameters of a network that every process holds a part of: all matrices but the smallest."""
    matrices = sorted((p for p in network.parameters() if p.dim() > 1), key=lambda p: p.numel())
    left = WHOLE * sum(p.numel() for p in matrices)
    for number, parameter in enumerate(matrices):
        left -= parameter.numel()
        if left < 0:
            return set(matrices[number:])
    return set()
