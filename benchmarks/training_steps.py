"""One figure each of `benchmarks/training.py`: a training step, a reward, a sample, a profile."""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import bare
import torch
import train_parts as parts  # first: it finds guidedcd where that is not installed

from guidedcd.acceleration.garbage import settled
from guidedcd.acceleration.switch import speed_up
from guidedcd.config.sections import ActivationCheckpointConfig, OptimizerConfig, ParallelConfig, Student, Train
from guidedcd.diffusion.sampler import sample
from guidedcd.models.student import Student as Network
from guidedcd.rewards.scorer import RewardScorer
from guidedcd.training.distributed import accelerator_for
from guidedcd.training.step import TrainStep

REWARDS = ("hps", "clip", "internv2")
BASE = {"batch_size": 3, "reward_batch": 1, "precision": "bf16"}
CHECKPOINTED, MOST, TEMPORAL = (
    {"activation_checkpoint": ActivationCheckpointConfig(layers=layers)} for layers in ("all", "most", "temporal")
)
FRAMES = {"hps": 2, "clip": 2, "internv2": 4}
STEPS: dict[str, tuple[dict[str, Any], tuple[str, ...], dict[str, Any]]] = {
    "cd": ({}, (), {}),
    "cd-checkpointed": (CHECKPOINTED, (), {}),
    "all": ({}, REWARDS, {}),
    "all-checkpointed": (CHECKPOINTED, REWARDS, {}),
    "cd-most": (MOST, (), {}),
    "all-most": (MOST, REWARDS, {}),
    "all-most-internv2": (MOST, REWARDS, {}),
    "cd-temporal": (TEMPORAL, (), {}),
    "all-temporal": (TEMPORAL, REWARDS, {}),
    "lora-checkpointed": (CHECKPOINTED, (), {"kind": "lora", "rank": 64}),
    "cd-8bit-checkpointed": ({**CHECKPOINTED, "optimizer": OptimizerConfig(name="adamw-8bit")}, (), {}),
    "cd-average-checkpointed": ({**CHECKPOINTED, "average": 0.999}, (), {}),
    "cd-float32-masters-only": ({**CHECKPOINTED, "precision": "no"}, (), {}),
}
"""By name: options of training, rewards, options of the student."""
RECOMPUTED = {"all-most-internv2": ("internv2",)}
"""Rewards whose blocks are recomputed."""


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
    """Median seconds of call(1), call(2), ..., and the peak of memory, after warm-up.

    A call that gives a function is only launched: that is called after the next launch, as the trainer does.
    """
    gpu = options.device.startswith("cuda")
    began, times, before = time.perf_counter(), [], None
    with settled():  # as in the trainer's own loop
        for number in range(1, options.warm_up + options.repeats + 1):
            if number == options.warm_up + 1:
                first = time.perf_counter() - began
                if gpu:
                    torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            launched = call(number)
            if before is not None:
                before()
            before = launched if callable(launched) else None
            if before is None:
                synchronize()
            times.append(time.perf_counter() - start)
        if before is not None:
            before()
        synchronize()
    times = times[options.warm_up :]
    found: dict[str, Any] = {"seconds": round(statistics.median(times), 4)}
    if gpu:
        found["gb"] = round(bare.peak_gb(options.device), 2)
        found["gb_reserved"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
    return found | {"warm_up_s": round(first, 1), "times_s": [round(t, 4) for t in times]}


def stepper(name: str, options: argparse.Namespace, parallel: str = "ddp") -> TrainStep:
    """The trainer's step for a figure WHAT/FAST."""
    what, _, fast = name.partition("/")
    changes, rewards, student = STEPS[what]
    settings = Train(**{**BASE, **changes}, fast=fast or "no", parallel=ParallelConfig(mode=parallel))
    device = torch.device(options.device)
    run = parts.run(settings, rewards, Student(**student))
    accelerator = accelerator_for(run, device)
    teacher = parts.teacher(accelerator.device if accelerator.num_processes > 1 else device, options.tiny)
    again = RECOMPUTED.get(what, ())
    modules = {n: (parts.reward(n, teacher.device, options.tiny, n in again), run.rewards[n]) for n in rewards}
    engine = RewardScorer(modules, teacher, low_memory=settings.activation_checkpoint.recomputes_decoder)
    made = parts.batches(teacher, settings.batch_size, rewards)
    return TrainStep(run, teacher, accelerator, rewards=engine, batches=made)


def step_figure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and memory of one training step."""
    step, lines = stepper(name, options), []

    def call(number: int) -> Callable[[], None]:
        numbers = step.begin(number)
        return lambda: lines.append(numbers())

    found = timed(call, options)
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
