"""Training steps at VideoCrafter2's size (1.4 B parameters, 320x512, 16 frames), with random weights and batches.

    python benchmarks/train.py --out train.json                     # one GPU
    python benchmarks/train.py --processes 2 --only parallel        # two: DDP and FSDP2 against one of them
    python benchmarks/train.py --tiny                               # the same on a CPU, in seconds

It calls the trainer's own step. Every figure is printed when it is known, with that of the official code beside it;
one that fails says why, and the others go on. Seconds are medians after warm-up; GB are peaks of allocated memory in
units of 2^30 bytes, as in the official figures.

Figures are named WHAT/FAST, where FAST is a value of --train.fast.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import os
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import train_parts as parts  # first: it finds guidedcd where that is not installed

from guidedcd.configs import Student, Train
from guidedcd.fast import speed_up
from guidedcd.parallel import accelerator_for
from guidedcd.rewards import Rewards
from guidedcd.sample import sample
from guidedcd.stepper import Stepper
from guidedcd.student import Student as Network

REWARDS = ("hps", "clip", "internv2")
BASE = {"batch_size": 3, "reward_batch": 1, "precision": "bf16", "lr": 1e-5}
CHECKPOINTED = {"gradient_checkpointing": True}
FRAMES = {"hps": 2, "clip": 2, "internv2": 4}
OFFICIAL = {
    "cd": "1.02 s (+0.22 s of gc), 29.4 GB with checkpointing",
    "all": "1.34 s (+0.27 s of gc), 50.3 GB",
    "sample": "0.53 s, 4.3 GB",
}
STEPS: dict[str, tuple[dict[str, Any], tuple[str, ...], dict[str, Any]]] = {
    "cd": ({}, (), {}),
    "cd-checkpointed": (CHECKPOINTED, (), {}),
    "all": ({"decoder_checkpointing": True}, REWARDS, {}),
    "all-checkpointed": (CHECKPOINTED, REWARDS, {}),
    "cd-temporal": ({**CHECKPOINTED, "checkpointed": "temporal"}, (), {}),
    "all-temporal": ({**CHECKPOINTED, "checkpointed": "temporal"}, REWARDS, {}),
    "lora-checkpointed": (CHECKPOINTED, (), {"kind": "lora", "rank": 64}),
    "cd-8bit-checkpointed": ({**CHECKPOINTED, "optimizer": "adamw-8bit"}, (), {}),
    "cd-average-checkpointed": ({**CHECKPOINTED, "average": 0.999}, (), {}),
    "cd-float32-masters-only": ({**CHECKPOINTED, "precision": "no"}, (), {}),
}
"""By name: options of training, rewards, options of the student."""
ORDER = (
    *("cd/layers", "cd-checkpointed/layers", "all/layers", "all-checkpointed/layers", "lora-checkpointed/layers"),
    *("cd-temporal/layers", "all-temporal/layers"),
    *("cd-8bit-checkpointed/layers", "reward-hps", "reward-clip", "reward-internv2", "sample/layers"),
    *("cd/blocks", "cd-checkpointed/blocks", "all/blocks", "all-temporal/blocks", "all-checkpointed/blocks"),
    *("cd/no", "cd-checkpointed/no", "all/no", "cd-average-checkpointed/layers"),
)
"""What is measured when nothing is chosen; `cd-float32-masters-only` is asked for by name."""
PARALLEL = ("parallel-ddp", "parallel-fsdp")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="figures, comma-separated, '*' allowed: cd/*,reward-*,parallel")
    parser.add_argument("--out", type=Path, help="JSON file, rewritten after every figure")
    parser.add_argument("--budget", type=float, default=540, help="seconds after which no figure is begun")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1, help="GPUs for the figures named parallel-*")
    parser.add_argument("--fast", default="layers", help="--train.fast of the figures named parallel-*")
    parser.add_argument("--profile", help="print a table of operations of this figure instead, e.g. cd/layers")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="networks of a few thousand weights")
    return parser.parse_args(arguments)


class Lines:
    """Figures as they become known, on the terminal and in the file."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.began, self.rows = options, time.perf_counter(), []
        gpu = options.device.startswith("cuda")
        self.about = {"torch": torch.__version__, "device": torch.cuda.get_device_name() if gpu else "cpu"}

    def left(self) -> float:
        """Seconds until nothing more is begun."""
        return self.options.budget - (time.perf_counter() - self.began)

    def add(self, name: str, **values: Any) -> None:
        """Tell one figure."""
        official = OFFICIAL.get(name.split("/")[0].split("-")[0], "-")
        self.rows.append(
            {"figure": name, **values, "official": official, "at": round(self.options.budget - self.left())}
        )
        said = ", ".join(f"{key} {value}" for key, value in values.items() if key != "times_s")
        print(f"{name:32s} {said}  [official: {official}]", flush=True)
        if self.options.out:
            self.options.out.parent.mkdir(parents=True, exist_ok=True)
            self.options.out.write_text(json.dumps({**self.about, "figures": self.rows}, indent=1) + "\n")

    def attempt(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Measure one figure, unless the time is over; a failure is told and stops nothing else."""
        if self.left() <= 0:
            return self.add(name, left_out="the time is over")
        try:
            self.add(name, **measure())
        except Exception as error:
            traceback.print_exc()
            self.add(name, failed=f"{type(error).__name__}: {str(error)[:300]}")
        free()


def free() -> None:
    """Give memory back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def synchronize() -> None:
    """Wait for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(call: Callable[[int], Any], options: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of call(1), call(2), ..., and the peak of memory, after warm-up."""
    gpu = options.device.startswith("cuda")
    began, times = time.perf_counter(), []
    for number in range(1, options.warm_up + options.repeats + 1):
        if number == options.warm_up + 1:
            first = time.perf_counter() - began
            if gpu:
                torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        call(number)
        synchronize()
        times.append(time.perf_counter() - start)
    times = times[options.warm_up :]
    found: dict[str, Any] = {"seconds": round(statistics.median(times), 4)}
    if gpu:
        found["gb"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        found["gb_reserved"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
    return found | {"warm_up_s": round(first, 1), "times_s": [round(t, 4) for t in times]}


def stepper(name: str, options: argparse.Namespace, parallel: str = "ddp") -> Stepper:
    """The trainer's step for a figure WHAT/FAST."""
    what, _, fast = name.partition("/")
    changes, rewards, student = STEPS[what]
    settings = Train(**{**BASE, **changes}, fast=fast or "no", parallel=parallel)
    device = torch.device(options.device)
    run = parts.run(settings, rewards, Student(**student))
    accelerator = accelerator_for(run, device)
    teacher = parts.teacher(accelerator.device if accelerator.num_processes > 1 else device, options.tiny)
    modules = {n: (parts.reward(n, teacher.device, options.tiny), run.rewards[n]) for n in rewards}
    low = settings.gradient_checkpointing if settings.decoder_checkpointing is None else settings.decoder_checkpointing
    engine = Rewards(modules, teacher, low_memory=low)
    made = parts.batches(teacher, settings.batch_size, rewards)
    return Stepper(run, teacher, accelerator, rewards=engine, batches=made)


def step_figure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and memory of one training step."""
    step, lines = stepper(name, options), []
    found = timed(lambda number: lines.append(step(number)), options)
    params = sum(p.numel() for p in step.student.network.parameters())
    losses = {key: round(lines[-1][key], 4) for key in ("loss", "cd_loss", "grad_norm")}
    return found | {"params_b": round(params / 1e9, 3)} | losses


def reward_figure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One reward's score of one clip, with the gradient to the pixels; the caption's features are known."""
    reward = parts.reward(name, torch.device(options.device), options.tiny)
    held = torch.cuda.memory_allocated() / 2**30 if options.device.startswith("cuda") else 0.0
    size = (20, 32) if options.tiny else (320, 512)
    video = torch.rand(1, FRAMES[name], 3, *size, device=options.device)

    def score(number: int) -> None:
        pixels = video.clone().requires_grad_(True)
        reward(pixels, [parts.CAPTION]).sum().backward()

    return {"frames": FRAMES[name], **timed(score, options), "weights_gb": round(held, 2)}


def sample_figure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One video in four steps, decoded, in bfloat16."""
    teacher = parts.teacher(torch.device(options.device), options.tiny)
    batch = parts.batches(teacher, 1, ())(0).to(torch.device(options.device))
    dtype = torch.float32 if options.tiny else torch.bfloat16
    if name.partition("/")[2] != "no":
        speed_up(teacher.network)
    student = Network(teacher, energies=("pta",), take=True).to(dtype=dtype).eval()
    torch.nn.Module.to(teacher.vae, dtype)

    @torch.no_grad()
    def call(number: int) -> None:
        z = sample(student, teacher, batch.cond, batch.noise, 4, 7.5, [0.05])
        teacher.decode(z)

    return timed(call, options)


def profile(name: str, options: argparse.Namespace) -> None:
    """Print where a step's time goes, and write the table beside the output file."""
    from torch.profiler import ProfilerActivity

    step = stepper(name, options)
    for number in range(1, options.warm_up + 1):
        step(number)
    gpu = options.device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with torch.profiler.profile(activities=activities) as found:
        step(options.warm_up + 1)
        synchronize()
    order = "self_device_time_total" if gpu else "self_cpu_time_total"
    table = found.key_averages().table(sort_by=order, row_limit=50, max_name_column_width=70)
    print(table, flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.with_suffix(".profile.txt").write_text(table)


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
    import socket

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


def parallel_figures(lines: Lines, options: argparse.Namespace, wanted: list[str]) -> None:
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


def chosen(names: tuple[str, ...], only: str) -> Iterator[str]:
    """The figures that are asked for; all of `names` when none is."""
    words = [word for word in only.split(",") if word]
    extra = tuple(f"{what}/{fast}" for what in STEPS for fast in ("no", "layers", "blocks", "blocks-tuned"))
    for name in dict.fromkeys((*names, *(extra if words else ()))):
        if not words or any(fnmatch.fnmatch(name, word) for word in words):
            yield name


def main(arguments: list[str] | None = None) -> None:
    """Measure what is asked for."""
    options = parse(arguments)
    if options.profile:
        return profile(options.profile, options)
    lines = Lines(options)
    wanted = [name for name in PARALLEL if "parallel" in options.only or name in options.only or not options.only]
    if options.processes > 1 and wanted:
        parallel_figures(lines, options, wanted)
    for name in chosen(ORDER, options.only):
        kind = name.split("-")[0].split("/")[0]
        if kind == "reward":
            lines.attempt(name, lambda name=name: reward_figure(name.removeprefix("reward-"), options))
        elif kind == "sample":
            lines.attempt(name, lambda name=name: sample_figure(name, options))
        else:
            lines.attempt(name, lambda name=name: step_figure(name, options))
    print(f"done after {options.budget - lines.left():.0f} s", flush=True)


if __name__ == "__main__":
    main()
