"""Training steps of `video_transformers.py`, by the trainer's own objects, in one process or several."""

from __future__ import annotations

import argparse
from typing import Any

import networks
import torch
import transformer_networks as wan
from harness import Recorder
from training_parallel import mode_of, time_in_process
from training_steps import time_step

from guidedcd.config.sections import ActivationCheckpointConfig, ParallelConfig, Student, Train
from guidedcd.plugins.configs import RewardConfig
from guidedcd.rewards.scorer import RewardScorer
from guidedcd.training.distributed import accelerator_for
from guidedcd.training.step import TrainStep

REWARDS = ("hps", "clip", "videoreward")
FULL, LORA = {"ema": 0.99}, {"kind": "lora", "rank": 64}
STEPS: dict[str, tuple[str, str, tuple[str, ...], dict[str, Any]]] = {
    "cd small": ("small", "none", (), FULL),
    "cd small recomputed": ("small", "most", (), FULL),
    "lora large": ("large", "most", (), LORA),
    "lora large all recomputed": ("large", "all", (), LORA),
    "lora large rewards": ("large", "most", REWARDS, LORA),
    "lora large rewards recomputed": ("large", "most", REWARDS, LORA),
    "lora large rewards replayed": ("large", "most", REWARDS, LORA),
}
"""By name: size, recomputed layers, rewards, options of the student."""
RECOMPUTED_REWARDS = {"recomputed": ("videoreward",), "replayed": REWARDS}
"""The rewards that recompute their blocks, by the end of a row's name; `replayed` ones are CUDA graphs as well.

Without graphs each recomputed block costs the host time, and `videoreward` alone keeps more activations than the
others together. With graphs recomputation costs little, and saves the memory that the graphs would keep.
"""
DECODE = "window:2"
"""What of a video is decoded for rewards."""


def reward_configs() -> dict[str, RewardConfig]:
    """The paper's weights of its rewards, and `videoreward`; all read the same four frames, which are decoded once."""
    from guidedcd_clip import CLIPConfig
    from guidedcd_hps import HPSConfig
    from guidedcd_videoreward import VideoRewardConfig

    return {
        "hps": HPSConfig(weight=0.2, frames=4, pick="even"),
        "clip": CLIPConfig(weight=0.2, frames=4, pick="even"),
        "videoreward": VideoRewardConfig(weight=0.1, frames=4, pick="even", dtype="bf16"),
    }


def build_step(
    name: str, options: argparse.Namespace, parallel: str = "ddp", batch_size: int = 1
) -> tuple[TrainStep, str]:
    """The trainer's own step for a row WHAT/FAST, and how much it recomputes."""
    what, _, fast = name.partition("/")
    size, layers, rewards, student = STEPS[what]
    # The stock network of a trainer recomputes whole blocks.
    layers = "all" if fast == "no" and layers != "none" else layers
    settings = Train(
        batch_size=batch_size,
        precision="bf16",
        fast=fast,
        flash_attention=options.flash_attention if fast != "no" else None,
        parallel=ParallelConfig(mode=parallel),
        replay_rewards=True if what.endswith("replayed") else None,
        activation_checkpoint=ActivationCheckpointConfig(layers=layers),
        log_every=1000,
    )
    run = wan.run_of(settings, Student(**student), rewards={n: c for n, c in reward_configs().items() if n in rewards})
    accelerator = accelerator_for(run, torch.device(options.device))
    device = accelerator.device if accelerator.num_processes > 1 else torch.device(options.device)
    torch.backends.cudnn.benchmark = False  # fast paths turn it on
    teacher = wan.teacher(device, torch.float32, size, options.tiny, decoder=torch.bfloat16, decode=DECODE)
    again = RECOMPUTED_REWARDS.get(what.partition("rewards ")[2], ())
    modules = {
        reward: (
            networks.reward(reward, device, options.tiny, reward in again),
            run.rewards[reward],
        )
        for reward in rewards
    }
    scorer = RewardScorer(modules, teacher, low_memory=settings.activation_checkpoint.recomputes_decoder)
    batches = wan.RandomBatches(batch_size, teacher.geometry.latent_shape, rewards, options.tiny)
    return TrainStep(run, teacher, accelerator, rewards=scorer, batches=batches), layers


def measure_step(recorder: Recorder, name: str, options: argparse.Namespace) -> None:
    """Seconds and memory of a training step."""
    step, layers = build_step(name, options)
    if name.startswith("lora large"):  # a step takes seconds
        options = argparse.Namespace(**vars(options) | {"repeats": min(options.repeats, 5), "warm_up": 2})
    timing, metrics = time_step(step, options)
    numbers = {key: metrics[key] for key in ("loss", "cd_loss", "grad_norm")}
    recorder.add(name, timing.values(), recomputed=layers, all_seconds=timing.seconds, **numbers)


def measure_process(rank: int, world: int, name: str, options: argparse.Namespace, port: int, out: str) -> None:
    """In one process of several: time the step of a small transformer on this process's own samples."""
    row, mode = f"cd small/{options.fast}", mode_of(name)
    time_in_process(rank, world, options, port, out, lambda: build_step(row, options, mode, options.batch)[0])
