"""Cost of training: one step of the student and one of the rewards, counted on the meta device.

Legend: B samples of a batch, N network parameters, T trained ones.
"""

from __future__ import annotations

from typing import Any

import attrs
import torch

from guidedcd.acceleration.options import replays
from guidedcd.acceleration.precision import cast
from guidedcd.config.run import Run
from guidedcd.data.routing import Route
from guidedcd.devices import dtype_of_precision
from guidedcd.models.student import Student
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.planning.gpus import Machine
from guidedcd.planning.meter import Cost, metered, size
from guidedcd.planning.preprocess_cost import empty
from guidedcd.rewards.latents import StudentPredictions
from guidedcd.rewards.scorer import RewardScorer
from guidedcd.training import distributed
from guidedcd.training.batches import Batch
from guidedcd.training.losses import consistency


@attrs.frozen(kw_only=True)
class Sizes:
    """Bytes in the memory of one process between steps."""

    weights: float
    """The weights in the dtype in which the network computes."""
    masters: float
    """Float32 copies of trained weights; 0 where the network has float32 weights."""
    states: float
    """States of the optimiser."""
    averages: float
    gradients: float
    """Float32 gradients for the optimiser, in addition to those of the backward pass."""

    @property
    def between(self) -> float:
        """Bytes that are occupied between steps."""
        return self.weights + self.masters + self.states + self.averages


@attrs.define(kw_only=True)
class Training:
    """The costs of one batch of a run."""

    run: Run
    step: Cost
    """Both passes of the student, and the gradient."""
    held: int
    """Bytes that the student's passes leave for the gradient, when the rewards run."""
    rewards: Cost | None
    sizes: Sizes
    replayed: float
    """Bytes that a CUDA graph of the target's pass occupies."""
    others: int
    """Bytes of the decoder and of the rewards."""
    trained: int
    """Numbers that the optimiser updates."""
    whole: int
    """Numbers in the network."""
    width: int
    """Bytes of a number of the teacher's weights."""

    def sized(self, processes: int) -> Training:
        """The costs with the optimiser of `run` and this number of processes."""
        sizes = resident(self.run, self.whole, self.trained, self.width, processes=processes)
        return attrs.evolve(self, sizes=sizes)

    @property
    def flops(self) -> float:
        """Operations of one batch."""
        return self.step.flops + (self.rewards.flops if self.rewards else 0)

    @property
    def peak(self) -> float:
        """Bytes at the peak: in a backward pass, while rewards are computed, or when gradients are converted."""
        working = max(self.step.peak, self.held + (self.rewards.peak if self.rewards else 0), self.sizes.gradients)
        return self.sizes.between + self.others + self.replayed + working

    def seconds(self, machine: Machine) -> float:
        """Seconds of one optimiser step."""
        batch = machine.seconds(self.step) + (machine.seconds(self.rewards) if self.rewards else 0)
        # Reads and writes weights, two states and gradients once each.
        update = 2 * (self.sizes.masters + self.sizes.states + 4 * self.trained) / machine.bandwidth / machine.share
        return batch * self.run.train.accumulate + update


def training(run: Run, teacher: Teacher, cond: dict[str, tuple[int, ...]]) -> Training:
    """Count a batch of a run.

    Args:
        run: The run.
        teacher: The teacher on the meta device, whose network is copied.
        cond: Shape of one caption's conditioning by key, without the batch.
    """
    settings, batch = run.train, run.train.batch_size
    with torch.device("meta"):
        student = Student(teacher, attrs.evolve(run.student, init=""), tuple(run.energies))
    named = list(student.network.parameters())
    trained, whole, width = sum(p.numel() for p in student.trainable), sum(map(torch.numel, named)), named[0].itemsize
    if (narrow := dtype_of_precision(settings.precision)) is not None:
        for network in (student.network, student.averaged):
            if network is not None:
                cast(network, narrow)
    layers = settings.activation_checkpoint.layers
    if layers != "none":
        student.enable_gradient_checkpointing(layers)
    student.train()
    z = [empty(batch, *teacher.geometry.latent_shape) for _ in range(4)]
    samples = Batch(
        ids=(),
        samples=(),
        routes=(),
        index=torch.zeros(batch, dtype=torch.long, device="meta"),
        z0=z[0],
        noise=z[1],
        cond={key: empty(batch, *shape) for key, shape in cond.items()},
        cond_output=z[2],
        uncond_output=z[3],
        scores={name: empty(*z[0].shape) for name in run.energies},
        omega=empty(batch),
        strengths=empty(batch, len(run.energies)),
    )
    with metered() as alone, torch.no_grad():
        if replays(settings.fast):
            strengths = samples.strengths if run.energies else None
            student.target(samples.z0, samples.index, samples.cond, samples.omega, strengths)
    with metered() as step:
        loss, _ = consistency(
            student,
            teacher.schedule,
            samples,
            grid=teacher.schedule.grid(run.solver.steps).to("meta"),
            solver=run.solver,
            energies=run.energies,
            loss=settings.loss,
            huber_c=settings.huber_c,
            target=student.target,
        )
        if run.rewards and settings.rollouts.videos:
            loss = loss + _rollouts(run, student, teacher, cond)
        held = step.remaining
        torch.autograd.backward(loss)
    sizes = resident(run, whole, trained, width)
    figures = {"trained": trained, "whole": whole, "width": width, "replayed": alone.peak}
    return Training(run=run, step=step, held=held, rewards=None, sizes=sizes, others=0, **figures)


def _rollouts(run: Run, student: Student, teacher: Teacher, cond: dict[str, tuple[int, ...]]) -> torch.Tensor:
    """Rollouts of the student: on average half of their steps without gradient, then one pass with a gradient."""
    own = run.train.rollouts.videos
    z, t = empty(own, *teacher.geometry.latent_shape), torch.zeros(own, dtype=torch.long, device="meta")
    text = {key: empty(own, *shape) for key, shape in cond.items()}
    lambdas = empty(own, len(run.energies)) if run.energies else None
    with torch.no_grad():
        for _ in range(run.train.rollouts.steps // 2):
            student(z, t, text, empty(own), lambdas)
    return student(z, t, text, empty(own), lambdas).mean()


def resident(run: Run, whole: int, trained: int, width: int = 4, *, processes: int = 1) -> Sizes:
    """Bytes in memory between steps.

    Args:
        run: Precision, optimiser, averages and parallel mode are read.
        whole: Numbers in the network.
        trained: Numbers that are trained.
        width: Bytes of a number of the teacher's weights.
        processes: With `fsdp` each has one shard, and all have the smallest parameters.
    """
    settings = run.train
    eight_bit = settings.optimizer.name == "adamw-8bit"
    sharded = settings.parallel.mode == "fsdp" and processes > 1
    share = distributed.WHOLE + (1 - distributed.WHOLE) / processes if sharded else 1.0
    narrow = settings.precision == "bf16" and not sharded
    average = run.student.ema is not None or settings.average is not None
    averages = 4 * trained if average else 0
    if run.student.ema is not None and narrow:
        averages += 2 * whole  # the target computes with a narrow copy
    elif run.student.ema is not None:
        averages = width * whole
    computing = 2 if settings.precision == "bf16" else width
    gathered = computing * whole if sharded else 0  # sharded weights stay gathered through a step
    return Sizes(
        weights=(2 if narrow else width) * whole * share + gathered,
        masters=4 * trained * share if narrow else 0,
        states=(2 + 8 / 256 if eight_bit else 8) * trained * share,
        averages=averages * share,
        gradients=4 * trained * share if narrow else 0,
    )


def scoring(run: Run, teacher: Teacher, modules: dict[str, Any]) -> Cost:
    """Count decoding and scoring of one batch's routed samples, and the gradient to the predicted latents.

    Args:
        run: Frames, weights and limits of its rewards are read.
        teacher: The teacher on the meta device; its decoder is modified.
        modules: The rewards by name, on the meta device; they are modified.
    """
    settings = run.train
    vae = getattr(teacher, "vae", None)  # teachers of latents have one
    if settings.precision == "bf16" and isinstance(vae, torch.nn.Module):
        vae.to(torch.bfloat16)
    rewards = {name: (modules[name], run.rewards[name]) for name in modules}
    scorer = RewardScorer(rewards, teacher, low_memory=settings.activation_checkpoint.recomputes_decoder)
    batch = settings.batch_size + settings.rollouts.videos
    batch = min(batch, settings.reward_batch or batch)
    routes = [Route(caption="a", rewards=frozenset(modules))] * batch
    predicted = empty(batch, *teacher.geometry.latent_shape).requires_grad_()
    clips = predicted.detach()
    t = torch.zeros(batch, dtype=torch.int64)
    source = StudentPredictions(latents=predicted, routes=routes, z=clips, t=t, clips=clips, outputs=clips)
    with metered() as cost:
        total = scorer.total(scorer.score(predicted, routes, torch.Generator().manual_seed(0), sources=[source]))
        if isinstance(total, torch.Tensor) and total.requires_grad:
            torch.autograd.backward(total)
    return cost


def others(run: Run, teacher: Teacher, modules: dict[str, Any]) -> int:
    """Bytes of the other modules: decoder (16 bits with bf16), rewards, and the text encoder if there are rollouts."""
    decoder = getattr(teacher, "vae", None)
    vae = size(decoder)
    if decoder is not None and vae and run.train.precision == "bf16":
        vae = vae * 2 // next(decoder.parameters()).itemsize
    text = getattr(teacher, "text", None) if run.train.rollouts.videos else None
    vae += size(getattr(teacher, "tiny", None))
    return vae + size(text if isinstance(text, torch.nn.Module) else None) + sum(map(size, modules.values()))
