"""One row each of `training.py`: a training step, a reward, a sample; and the profile of a step."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from typing import Any

import harness  # first: it finds guidedcd where that is not installed
import networks
import torch
from harness import Recorder, Timing, time_calls
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_batches import CAPTION, RandomBatches, paper_run

from guidedcd.acceleration.switch import speed_up
from guidedcd.config.sections import ActivationCheckpointConfig, OptimizerConfig, ParallelConfig, Student, Train
from guidedcd.diffusion.sampler import sample
from guidedcd.models.student import Student as StudentNetwork
from guidedcd.rewards.scorer import RewardScorer
from guidedcd.training.distributed import accelerator_for
from guidedcd.training.step import TrainStep

REWARDS = ("hps", "clip", "internv2")
BASE = {"batch_size": 3, "reward_batch": 1, "precision": "bf16"}
CHECKPOINTED, MOST, TEMPORAL = (
    {"activation_checkpoint": ActivationCheckpointConfig(layers=layers)} for layers in ("all", "most", "temporal")
)
STEPS: dict[str, tuple[dict[str, Any], tuple[str, ...], dict[str, Any]]] = {
    "cd": ({}, (), {}),
    "cd-x0-motion": ({}, (), {}),
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
ENERGIES = {"cd-x0-motion": ("pta", "x0-motion")}
"""Energies of a row, where they are not `pta` alone."""
CHECKPOINTED_REWARDS = {"all-most-internv2": ("internv2",)}
"""Rewards whose blocks are recomputed."""


def build_step(name: str, options: argparse.Namespace, parallel: str = "ddp") -> TrainStep:
    """The trainer's own step for a row WHAT/FAST."""
    what, _, fast = name.partition("/")
    changes, rewards, student = STEPS[what]
    settings = Train(**{**BASE, **changes}, fast=fast or "no", parallel=ParallelConfig(mode=parallel))
    device = torch.device(options.device)
    energies = ENERGIES.get(what, ("pta",))
    run = paper_run(settings, rewards, Student(**student), energies)
    accelerator = accelerator_for(run, device)
    if accelerator.num_processes > 1:
        device = accelerator.device
    teacher = networks.teacher(device, torch.float32, options.tiny)
    checkpointed = CHECKPOINTED_REWARDS.get(what, ())
    modules = {
        reward: (networks.reward(reward, device, options.tiny, reward in checkpointed), run.rewards[reward])
        for reward in rewards
    }
    scorer = RewardScorer(modules, teacher, low_memory=settings.activation_checkpoint.recomputes_decoder)
    batches = RandomBatches(settings.batch_size, tuple(rewards), options.tiny, len(energies))
    return TrainStep(run, teacher, accelerator, rewards=scorer, batches=batches)


def time_step(step: TrainStep, options: argparse.Namespace) -> tuple[Timing, dict[str, float]]:
    """Seconds and memory of a training step, and the metrics of the last one."""
    numbers, metrics = itertools.count(1), {}

    def launch() -> Callable[[], None]:
        pending = step.begin(next(numbers))
        return lambda: metrics.update(pending())

    timing = time_calls(launch, options.device, repeats=options.repeats, warm_up=options.warm_up, deferred=True)
    return timing, metrics


def measure_step(recorder: Recorder, name: str, options: argparse.Namespace) -> None:
    """One training step."""
    step = build_step(name, options)
    timing, metrics = time_step(step, options)
    parameters = sum(p.numel() for p in step.student.network.parameters())
    losses = {key: metrics[key] for key in ("loss", "cd_loss", "grad_norm")}
    recorder.add(name, timing.values(), parameters=parameters, all_seconds=timing.seconds, **losses)


class Operations(TorchDispatchMode):
    """Counts the operations that PyTorch launches, and the bytes of their outputs."""

    count, size = 0, 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the operation, and count it."""
        output = function(*args, **(kwargs or {}))
        self.count += 1
        self.size += sum(one.nbytes for one in tree_leaves(output) if isinstance(one, torch.Tensor))
        return output


def count_step(recorder: Recorder, name: str, options: argparse.Namespace) -> None:
    """The operations of the third training step: seconds differ from process to process, and these do not."""
    step = build_step(name, options)
    for number in (1, 2):
        step(number)
    with Operations() as operations:
        step(3)
    recorder.add(name, {"operations": operations.count, "output_mb": operations.size / 1e6})


def measure_reward(recorder: Recorder, name: str, options: argparse.Namespace) -> None:
    """One reward's score of one clip with the gradient to the pixels; the caption's features are computed before."""
    kind = name.removeprefix("reward-")
    reward = networks.reward(kind, options.device, options.tiny)
    size, frames = networks.geometry(options.tiny), networks.FRAMES[kind]
    video = torch.rand(1, frames, 3, size.height, size.width, device=options.device)

    def score() -> None:
        pixels = video.clone().requires_grad_(True)
        reward(pixels, [CAPTION]).sum().backward()

    timing = time_calls(score, options.device, repeats=options.repeats, warm_up=options.warm_up)
    recorder.add(name, timing.values(), frames=frames)


def measure_sample(recorder: Recorder, name: str, options: argparse.Namespace) -> None:
    """One video in four steps, decoded, in bfloat16."""
    dtype = torch.float32 if options.tiny else torch.bfloat16
    teacher = networks.teacher(options.device, torch.float32, options.tiny)
    batch = RandomBatches(1, (), options.tiny)(0).to(torch.device(options.device))
    if name.partition("/")[2] != "no":
        speed_up(teacher.network)
    student = StudentNetwork(teacher, energies=("pta",), take=True).to(dtype=dtype).eval()
    torch.nn.Module.to(teacher.vae, dtype)

    @torch.no_grad()
    def call() -> None:
        teacher.decode(sample(student, teacher, batch.cond, batch.noise, 4, 7.5, [0.05]))

    timing = time_calls(call, options.device, repeats=options.repeats, warm_up=options.warm_up)
    recorder.add(name, timing.values())


def profile(name: str, options: argparse.Namespace) -> None:
    """Print where a step's time goes, and write the table beside the output file."""
    from torch.profiler import ProfilerActivity

    step = build_step(name, options)
    for number in range(1, options.warm_up + 1):
        step(number)
    gpu = torch.device(options.device).type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with torch.profiler.profile(activities=activities) as trace:
        step(options.warm_up + 1)
        harness.synchronize(options.device)
    order = "self_device_time_total" if gpu else "self_cpu_time_total"
    table = trace.key_averages().table(sort_by=order, row_limit=50, max_name_column_width=70)
    print(table, flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.with_suffix(".profile.txt").write_text(table)
