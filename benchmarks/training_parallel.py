"""Training steps of `benchmarks/training.py` in several processes, a GPU each, beside those of one."""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from training_steps import BASE, stepper, timed

ALONE = "parallel-one"
PARALLEL = ("parallel-ddp", "parallel-fsdp")
ROUNDS = 2


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
    step = stepper(f"cd/{options.fast}", options, "fsdp" if name.endswith("fsdp") else "ddp")
    made = step.batches
    step.batches = lambda number: made(number * world + rank)
    found = timed(step.begin, options)
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
        return json.loads(Path(out).read_text())


def parallel_figures(lines: Any, options: argparse.Namespace, wanted: list[str]) -> None:
    """Samples per second of several GPUs and of one, measured in turn: a host changes from minute to minute."""
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in (ALONE, *wanted)}
    failed: dict[str, str] = {}
    for _ in range(ROUNDS):
        for name, found in rounds.items():
            if lines.left() <= 0 or name in failed:
                continue
            try:
                found.append(spawned(1 if name == ALONE else options.processes, name, options))
            except Exception as error:
                traceback.print_exc()
                failed[name] = f"{type(error).__name__}: {str(error)[:300]}"
    whole = {name: merged(found, 1 if name == ALONE else options.processes) for name, found in rounds.items() if found}
    one = whole.get(ALONE, {}).get("samples_per_s", float("nan"))
    for name in rounds:
        about = whole.get(name, {})
        if about and name != ALONE:
            about = {"processes": options.processes, "times_one": round(about["samples_per_s"] / one, 3), **about}
        if name in failed:
            about["failed"] = failed[name]
        elif not about:
            about["left_out"] = "the time is over"
        lines.add(f"{name}/{options.fast}", **about)


def merged(found: list[dict[str, Any]], world: int) -> dict[str, Any]:
    """Some rounds of one figure as one measurement."""
    times = [seconds for one in found for seconds in one["times_s"]]
    seconds = statistics.median(times)
    peaks = {key: max(one[key] for one in found) for key in ("gb", "gb_reserved") if key in found[0]}
    speed = round(world * BASE["batch_size"] / seconds, 3)
    return {"seconds": round(seconds, 4), **peaks, "rounds": len(found), "samples_per_s": speed, "times_s": times}
