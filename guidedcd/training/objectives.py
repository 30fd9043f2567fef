"""The objectives of a training step, whose losses are added up.

An objective is called as objective(model, batch, step) and returns (losses, metrics). The losses are scalars, added to
the step's total in this order; the metrics are numbers for the log. A run trains on any subset of objectives. Those
that read the student's prediction share one forward pass.

Legend: B samples of this process and step, R videos that the student samples itself; latents (C, F, H, W).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any, ClassVar, Protocol

import attrs
import torch
from accelerate import Accelerator
from torch import Tensor

from guidedcd.config.run import Run
from guidedcd.devices import Stopwatch, blame_memory
from guidedcd.diffusion.consistency import Network
from guidedcd.diffusion.randomness import reward_generator
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.energies.output import OutputGradients
from guidedcd.rewards.latents import StudentPredictions
from guidedcd.rewards.scorer import RewardScorer
from guidedcd.training.batches import Batch
from guidedcd.training.log import BY_NOISE, SHARE, SHARE_BY_NOISE
from guidedcd.training.losses import NoisyBatch
from guidedcd.training.rollouts import Rollouts

Terms = tuple[Sequence[Tensor], dict[str, Any]]
"""(losses, metrics) of an objective."""


@attrs.define(kw_only=True, eq=False, slots=False)
class BatchStep:
    """The inputs that the objectives of one batch share."""

    run: Run
    model: Network
    """The student, called as model(z, t, cond, omega, lambdas)."""
    batch: Batch
    number: int
    """Number of the batch, from 0; the batches of one optimiser step follow each other."""
    schedule: NoiseSchedule
    grid: Tensor
    """The solver's timesteps."""
    accelerator: Accelerator
    advice: str
    """Options that need less memory, for the error of a forward pass that runs out of it."""
    stopwatch: Stopwatch | None = None
    """Times every objective's forward pass under its name."""
    outputs: OutputGradients | None = None
    """Computes the gradients of the energies of the output; None for a run without any."""

    @cached_property
    def noisy(self) -> NoisyBatch:
        """The batch with noise added, and the student's prediction there."""
        return NoisyBatch(
            self.model,
            self.schedule,
            self.batch,
            grid=self.grid,
            solver=self.run.solver,
            energies=self.run.energies,
            outputs=self.outputs,
        )

    @property
    def prediction(self) -> Tensor:
        """The student's prediction of the batch's clean latents (B, C, F, H, W), with a gradient."""
        with blame_memory("the student's forward pass", self.advice), self.accelerator.autocast():
            return self.noisy.prediction


class Objective(Protocol):
    """One term of a step's loss."""

    name: ClassVar[str]
    """Its part of a step's time."""

    def __call__(self, model: Network, batch: Batch, step: BatchStep) -> Terms:
        """(losses, metrics) of one batch; the metric `cd_loss` of several objectives is summed."""


@attrs.frozen(kw_only=True, eq=False)
class Consistency:
    """The student's predictions at both ends of the teacher's guided step agree (Algorithm 2)."""

    name: ClassVar[str] = "consistency"

    target: Network | None
    """The network of the second side; None for the student itself."""
    distance: Mapping[str, Any]
    """`loss` and `huber_c`, see `guidedcd.diffusion.consistency.distance`."""
    weight: float = 1.0

    def __call__(self, model: Network, batch: Batch, step: BatchStep) -> Terms:
        """The consistency loss times its weight; the metric is without it."""
        with blame_memory("the student's forward pass", step.advice), step.accelerator.autocast():
            loss = step.noisy.consistency_loss(target=self.target, **self.distance)
        shares = {f"{SHARE}{name}": share for name, share in step.noisy.shares.items()}
        by_noise = {f"{BY_NOISE}{level}": value for level, value in enumerate(step.noisy.by_noise, 1)}
        for name, levels in step.noisy.shares_by_noise.items():
            shares |= {f"{SHARE_BY_NOISE}{level}/{name}": value for level, value in enumerate(levels, 1)}
        return [self.weight * loss], {"cd_loss": loss.detach()} | by_noise | shares


@attrs.frozen(kw_only=True, eq=False)
class GuidedPrediction:
    """The student's prediction equals the guided teacher's at the same point (Meng et al. 2023, stage one).

    A student begins as the unguided teacher, and the consistency loss alone carries guidance from one solver step to
    the next only slowly. The weight falls from 1 to 0 over the first `steps` optimiser steps.
    """

    name: ClassVar[str] = "guided-prediction"

    steps: int
    distance: Mapping[str, Any]

    def __call__(self, model: Network, batch: Batch, step: BatchStep) -> Terms:
        """The guided-prediction loss times its weight; no loss after the first `steps` steps."""
        done = step.number // step.run.train.accumulate
        if done >= self.steps:
            return [], {}
        with blame_memory("the student's forward pass", step.advice), step.accelerator.autocast():
            loss = (1 - done / self.steps) * step.noisy.guided_prediction_loss(**self.distance)
        return [loss], {"cd_loss": loss.detach()}


class Source(Protocol):
    """A source of predictions that rewards score."""

    def __call__(self, model: Network, batch: Batch, step: BatchStep) -> StudentPredictions:
        """The predicted clean latents (N, C, F, H, W) with a route for each."""


def clip_predictions(model: Network, batch: Batch, step: BatchStep) -> StudentPredictions:
    """The student's predictions for the clips of the batch (B, C, F, H, W)."""
    return StudentPredictions(
        latents=step.prediction,
        routes=list(batch.routes),
        z=step.noisy.z,
        t=step.noisy.t,
        clips=batch.z0,
        outputs=batch.cond_output,
    )


@attrs.frozen(kw_only=True, eq=False)
class OwnVideos:
    """Videos (R, C, F, H, W) that the student samples from noise, in the size of the batch's clips."""

    rollouts: Rollouts

    def __call__(self, model: Network, batch: Batch, step: BatchStep) -> StudentPredictions:
        """The predictions of the last sampling step, and the routes of their prompts."""
        with blame_memory("the student's own videos", "Lower --train.rollouts.videos"), step.accelerator.autocast():
            return self.rollouts(model, step.number, batch.z0.shape[1:])


@attrs.frozen(kw_only=True, eq=False)
class Rewards:
    """Minus the weight of each reward times its mean over the samples that are routed to it.

    The mean runs over the samples of all sources and all processes, so that each sample has the same weight. Therefore
    one objective scores all sources together.
    """

    name: ClassVar[str] = "rewards"

    scorer: RewardScorer
    sources: Sequence[Source]
    """In the order in which `reward_batch` selects their samples."""

    def __call__(self, model: Network, batch: Batch, step: BatchStep) -> Terms:
        """One loss per reward that has samples, and its mean and the routed share of samples for the log."""
        run, accelerator = step.run, step.accelerator
        sources = [source(model, batch, step) for source in self.sources]
        predicted = sources[0].latents if len(sources) == 1 else torch.cat([one.latents for one in sources])
        routes = [route for one in sources for route in one.routes]
        generator = reward_generator(run.seed, step.number)
        with blame_memory("the rewards", "Use --train.reward-batch 1"):
            rewards = self.scorer(predicted, routes, generator, limit=run.train.reward_batch, sources=sources)
        counts = torch.tensor([float(len(values)) for values in rewards.values()])
        if accelerator.num_processes > 1:
            counts = accelerator.reduce(counts.to(predicted.device), "sum")
        losses: list[Tensor] = []
        metrics: dict[str, Any] = {}
        for (name, values), count in zip(rewards.items(), counts, strict=True):
            metrics[f"routed/{name}"] = len(values) / len(routes)
            if len(values):
                metrics[f"reward/{name}"] = values.detach().mean()
                # Gradients are averaged over processes, so the sum is scaled by their number.
                losses.append(-(run.rewards[name].weight * values.sum() * accelerator.num_processes / count))
        return losses, metrics


def objectives(run: Run, target: Network | None, scorer: RewardScorer, rollouts: Rollouts | None) -> list[Objective]:
    """The objectives of a run, in the order in which a step computes and adds them.

    Args:
        run: Its losses, energies and rewards.
        target: The network of the consistency loss's second side; None for the student itself.
        scorer: The run's rewards; without any there is no objective for them.
        rollouts: The student's own videos, which rewards score before the clips' predictions.
    """
    distance = {"loss": run.train.loss, "huber_c": run.train.huber_c}
    chosen: list[Objective] = [Consistency(target=target, distance=distance, weight=run.train.consistency_weight)]
    if run.train.guided_steps:
        chosen.append(GuidedPrediction(steps=run.train.guided_steps, distance=distance))
    if scorer.names:
        # Own videos come first: where `reward_batch` limits the samples, predictions from clips are left out.
        own = [] if rollouts is None else [OwnVideos(rollouts=rollouts)]
        chosen.append(Rewards(scorer=scorer, sources=[*own, clip_predictions]))
    return chosen


def total_loss(chosen: Sequence[Objective], step: BatchStep) -> tuple[Tensor, dict[str, Any]]:
    """The sum of all objectives' losses, and their metrics with `loss` first, on the device.

    Metrics of the same name are summed.
    """
    losses: list[Tensor] = []
    metrics: dict[str, Any] = {}
    for objective in chosen:
        with nullcontext() if step.stopwatch is None else step.stopwatch.part(objective.name):
            terms, numbers = objective(step.model, step.batch, step)
        losses += terms
        for name, value in numbers.items():
            metrics[name] = metrics[name] + value if name in metrics else value
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total, {"loss": total.detach()} | metrics
