"""Training steps of `benchmarks/train.py` in several processes, a GPU each, beside those of one."""

from __future__ import annotations

import argparse
import json
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from train_steps import BASE, stepper, timed

PARALLEL = ("parallel-ddp", "parallel-fsdp")


def together(rank: int, world: int, name: str, options: argparse.Namespace, port: int, out: str) -> None:
    """One process of several: a figure's step with its own samples; the first one writes what it took."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NCCL_NVLS_ENABLE": "0"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    gpu = options.device.startswith("cuda")
    if gpu:
        options.device = f"cuda:{rank}"
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(1)
    step = stepper(f"cd/{options.fast}", options, name.removeprefix("parallel-"))
    made = step.batches
    step.batches = lambda number: made(number * world + rank)
    found = timed(step, options)
    if rank == 0:
        Path(out).write_text(json.dumps(found))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def spawned(world: int, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """What `together` measured, in processes of its own."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "found.json")
        context = torch.multiprocessing.spawn(
            together, (world, name, options, port, out), nprocs=world, join=False, daemon=True
        )
        until = time.monotonic() + max(options.budget, 60)
        try:
            while not context.join(timeout=1):
                if time.monotonic() > until:
                    raise TimeoutError("the time is over")
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.kill()
        found = json.loads(Path(out).read_text())
    return found | {"samples_per_s": round(world * BASE["batch_size"] / found["seconds"], 3)}


def parallel_figures(lines: Any, options: argparse.Namespace, wanted: list[str]) -> None:
    """Samples per second of several GPUs, beside those of one."""
    alone: dict[str, Any] = {}

    def single() -> dict[str, Any]:
        alone.update(spawned(1, "parallel-ddp", options))
        return alone

    lines.attempt(f"parallel-one/{options.fast}", single)
    for name in wanted:

        def measure(name: str = name) -> dict[str, Any]:
            found = spawned(options.processes, name, options)
            times = found["samples_per_s"] / alone["samples_per_s"] if alone else float("nan")
            return {"processes": options.processes, "times_one": round(times, 3), **found}

        lines.attempt(f"{name}/{options.fast}", measure)
