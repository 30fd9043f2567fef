"""What `guidedcd plan` predicts for a profile of Wan, against measurements with random weights of its sizes.

    python benchmarks/planned.py wan-a14b-high                 # one GPU with 141 GB
    python benchmarks/planned.py wan-1.3b --frames 33 --height 256 --width 448
    python benchmarks/planned.py wan-1.3b --folder FOLDER      # the sizes of a folder, for example tiny ones on a CPU

Both experts of A14B are in memory, as in training. `times` is measured by predicted; a plan is right within a factor of
1.25 in seconds (docs/how-to/plan-a-run.md). Predictions on a CPU are those of a `--on` GPU, so that only the
memory is of use there.
"""

from __future__ import annotations

import argparse
import logging
from functools import partial
from typing import Any

import attrs
import harness  # first: it finds guidedcd where that is not installed
import torch
import transformer_networks as wan
from guidedcd_dits.wan import WanTeacher
from harness import Recorder, time_calls
from training_steps import time_step

from guidedcd.acceleration.apply import accelerated
from guidedcd.acceleration.precision import cast, computing_dtype
from guidedcd.config.run import Run
from guidedcd.planning.estimate import Estimator
from guidedcd.planning.gpus import machine
from guidedcd.planning.skeletons import outline
from guidedcd.rewards.scorer import RewardScorer
from guidedcd.training.batches import Batch
from guidedcd.training.distributed import accelerator_for
from guidedcd.training.step import TrainStep

ROWS = ("pass", "step")
"""The teacher's pass of one sample without gradient, and a step of training."""


def random_like(outlined: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A network of diffusers with the sizes of one on the meta device, and random weights."""
    torch.manual_seed(0)
    with device:
        network = type(outlined).from_config(outlined.config)
    cast(network, dtype)
    return network.requires_grad_(False).eval()


def random_teacher(run: Run, device: torch.device) -> Any:
    """The run's teacher with random weights, and random text in place of its encoder."""
    like = outline(run.teacher)
    dtype = computing_dtype(like.network)
    width = like.network.config.text_dim
    teacher = WanTeacher(
        network=random_like(like.network, device, dtype),
        other=random_like(like.other, device, dtype) if like.other is not None else None,
        vae=random_like(like.vae, device, like.vae.dtype),
        text=wan.RandomText(torch.randn(1, wan.TOKENS, width, device=device)),
        schedule=like.schedule,
        **{name: getattr(like, name) for name in ("scheduler", "geometry", "expand_timesteps", "expert", "boundary")},
    )
    teacher._digest = "random"  # hashing 57 GB takes minutes
    teacher.schedule.to(device)
    return teacher


@attrs.frozen
class Batches:
    """Random batches at the noise levels of the run."""

    run: Run
    teacher: Any

    def __call__(self, number: int) -> Batch:
        """Batch `number`."""
        size, steps = self.run.train.batch_size, self.run.solver.steps
        batch = wan.RandomBatches(size, self.teacher.geometry.latent_shape, (), False)(number)
        low, high = self.run.preprocess.noise_range
        index = torch.randint(max(1, int(low * steps)), int(high * steps), (size,))
        cond = {"prompt_embeds": self.teacher.text.embedding.expand(size, -1, -1)}
        return attrs.evolve(batch, index=index, cond=cond)


def measure(recorder: Recorder, row: str, run: Run, options: argparse.Namespace) -> None:
    """One row: seconds and memory, and what the plan predicts."""
    device = torch.device(options.device)
    where = machine(device, like=None if device.type == "cuda" else options.on)
    estimator = Estimator(where)
    counted = estimator.teaching(run).forward
    teacher = random_teacher(run, device)
    if row == "pass":
        predicted, memory = estimator.on(run, run.preprocess.fast).seconds(counted), None
        settings = run.preprocess
        z = torch.randn(1, *teacher.geometry.latent_shape, device=device)
        t, cond = torch.full((1,), 900, device=device), teacher.text([""])
        with (
            torch.no_grad(),
            accelerated(teacher, fast=settings.fast, precision=settings.precision, in_place=True) as fast,
        ):
            timing = time_calls(lambda: fast.net(z, t, cond), device, repeats=options.repeats, warm_up=options.warm_up)
        predicted /= 2 * settings.batch_size  # passes without gradient have twice as many samples
    else:
        stage = estimator.train(run, largest=False)
        predicted, memory = stage.each_seconds, stage.peak_gib
        step = TrainStep(
            run,
            teacher,
            accelerator_for(run, device),
            rewards=RewardScorer({}, teacher),
            batches=Batches(run, teacher),
        )
        timing, _ = time_step(step, options)
    details = {"predicted_s": predicted, "times": timing.median / predicted, "predicted_gb": memory}
    recorder.add(f"{run.profile} {row}/{run.train.fast}", timing.values(), **details)


def main(arguments: list[str] | None = None) -> None:
    """Measure what is selected."""
    parser = harness.parser(__doc__, budget=300, repeats=5)
    parser.add_argument("profile", help="a shipped profile of the teacher wan")
    parser.add_argument("--folder", help="a folder in diffusers' layout, whose configurations are read")
    parser.add_argument("--frames", type=int, help="of the videos; by default the model's usual size")
    parser.add_argument("--height", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--fast", help="--train.fast and --preprocess.fast, in place of the profile's")
    parser.add_argument("--on", default="h200", help="the GPU of predictions where the device is none")
    options = parser.parse_args(arguments)
    logging.getLogger("diffusers.models.modeling_utils").setLevel(logging.ERROR)  # it warns of every cast
    size = {name: getattr(options, name) for name in ("frames", "height", "width") if getattr(options, name)}
    path = {"path": options.folder} if options.folder else {}
    fast = {"fast": options.fast} if options.fast else {}
    data = "shapes"  # a run needs some, and nothing reads it
    run = Run.from_profile(options.profile, data=data, teacher={"wan": {**path, **size}}, train=fast, preprocess=fast)
    recorder = Recorder(options, "planned")
    for row in ROWS:
        name = f"{options.profile} {row}/{run.train.fast}"
        if harness.selected(name, options.only):
            recorder.attempt(name, partial(measure, recorder, row, run, options))
            harness.free_memory()


if __name__ == "__main__":
    main()
