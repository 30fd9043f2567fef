"""Training steps of `training.py` in several processes, a GPU each, measured in turn with those of one process."""

from __future__ import annotations

import argparse
import functools
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import torch
from harness import Recorder, Timing
from training_steps import BASE, build_step, time_step

from guidedcd.training.step import TrainStep

ALONE = "parallel-one"
PARALLEL = ("parallel-ddp", "parallel-fsdp")


def measure_process(rank: int, world: int, name: str, options: argparse.Namespace, port: int, out: str) -> None:
    """In one process of several: time a row's step on this process's own samples."""
    mode = mode_of(name)
    time_in_process(rank, world, options, port, out, lambda: build_step(f"cd/{options.fast}", options, mode))


def mode_of(name: str) -> str:
    """How several processes share the step of a row: "fsdp" or "ddp"."""
    return "fsdp" if name.startswith("parallel-fsdp") else "ddp"


def time_in_process(
    rank: int, world: int, options: argparse.Namespace, port: int, out: str, build: Callable[[], TrainStep]
) -> None:
    """Join the other processes, build a step and time it on this process's samples; the first one writes the timing."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NCCL_NVLS_ENABLE": "0"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    if options.device.startswith("cuda"):
        options.device = f"cuda:{rank}"
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(1)
    step = build()
    batches = step.batches
    step.batches = lambda number: batches(number * world + rank)
    timing, _ = time_step(step, options)
    if rank == 0:
        numbers = attrs.asdict(timing, filter=attrs.filters.exclude("first_output"))
        Path(out).write_text(json.dumps(numbers))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def spawn(world: int, name: str, options: argparse.Namespace, measure: Callable[..., None] = measure_process) -> Timing:
    """The timing of a step in `world` new processes, each of which calls `measure`.

    Raises:
        TimeoutError: They took longer than the whole budget.
    """
    with socket.socket() as free_port:
        free_port.bind(("127.0.0.1", 0))
        port = free_port.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "timing.json"
        context = torch.multiprocessing.spawn(
            measure, (world, name, options, port, str(out)), nprocs=world, join=False, daemon=True
        )
        until = time.monotonic() + max(options.budget, 60)
        try:
            while not context.join(timeout=1):
                if time.monotonic() > until:
                    raise TimeoutError("the processes took longer than the budget")
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.kill()
        numbers = json.loads(out.read_text())
        return Timing(**numbers | {"seconds": tuple(numbers["seconds"])})


def measure_parallel(recorder: Recorder, options: argparse.Namespace, names: list[str]) -> None:
    """Samples per second of several processes and of one, measured in turn: a host changes from minute to minute."""
    processes = {
        f"{name}/{options.fast}": 1 if name == ALONE else options.processes for name in dict.fromkeys((ALONE, *names))
    }
    timings = recorder.in_turn(
        {name: functools.partial(spawn, world, name, options) for name, world in processes.items()}
    )
    speeds = {name: processes[name] * BASE["batch_size"] / timing.median for name, timing in timings.items()}
    alone = speeds.get(f"{ALONE}/{options.fast}")
    for name, timing in timings.items():
        values = timing.values() | {"samples_per_s": speeds[name]}
        if alone and processes[name] > 1:
            values["times_one_gpu"] = speeds[name] / alone
        recorder.add(name, values, processes=processes[name], all_seconds=timing.seconds)
