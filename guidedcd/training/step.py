"""One optimiser step: losses of routed samples, gradients, weights. It knows no component by name, and no files.

Legend: B samples of this process and step, E energies; latents (C, F, H, W).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from guidedcd.acceleration.options import choose, replays
from guidedcd.acceleration.switch import is_fast, speed_up
from guidedcd.config.run import Run
from guidedcd.devices import blame_memory
from guidedcd.diffusion.randomness import dropout_seed
from guidedcd.errors import GuidedCDError
from guidedcd.models.student import Student
from guidedcd.rewards.scorer import RewardScorer
from guidedcd.training import distributed, optimizer
from guidedcd.training.batches import Batch
from guidedcd.training.objectives import BatchStep, objectives, total_loss
from guidedcd.training.rollouts import Rollouts
from guidedcd.training.step_metrics import StepMetrics

PendingStep = Callable[[], dict[str, float]]
"""A launched step: called, it waits for its numbers, and raises GuidedCDError where they are not finite."""


class TrainStep:
    """A student with its optimiser, and what a step of training does to them.

    Every random number of a step depends on (seed, step) alone, so a resumed run repeats an uninterrupted one.
    Every process computes every objective on its own part of the batch.

    Args:
        run: What to train and how.
        teacher: Its denoiser is taken over by the student, and what training does not ask of it leaves the device.
        accelerator: See `parallel.accelerator_for`.
        rewards: Those of the run, with the run's decoder.
        batches: Batch by number, for this process; on any device.
        rollouts: The student's own videos by batch number, for the rewards.
    """

    def __init__(
        self,
        run: Run,
        teacher: Any,
        accelerator: Accelerator,
        *,
        rewards: RewardScorer,
        batches: Callable[[int], Batch],
        rollouts: Rollouts | None = None,
    ) -> None:
        self.run, self.teacher, self.accelerator = run, teacher, accelerator
        self.rewards, self.batches, self.rollouts = rewards, batches, rollouts
        settings, self.device = run.train, teacher.device
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if replays(settings.fast):
            for module in rewards.modules.values():
                if callable(getattr(module, "use_graphs", None)):
                    module.use_graphs()
        self.schedule = teacher.schedule
        self.grid = self.schedule.grid(run.solver.steps).to(self.device)
        with blame_memory("the student", "Use --student.kind lora"):
            torch.manual_seed(run.seed)
            vae, dtype = getattr(teacher, "vae", None), distributed.weights_dtype(settings.precision)
            if isinstance(vae, nn.Module) and dtype is not None:
                nn.Module.to(vae, dtype)
            paths = choose(settings.fast, teacher.network)
            if paths is not None and not is_fast(teacher.network):
                speed_up(teacher.network, compile=paths.compile, graphs=paths.graphs)
                if type(vae).__name__ == "AutoencoderKL":
                    speed_up(vae)
                # Convolutions are tried in all ways at first, where results need not be the same from run to run.
                torch.backends.cudnn.benchmark |= not torch.are_deterministic_algorithms_enabled()
            self.student = Student(teacher, run.student, tuple(run.energies), take=True).to(self.device)
            if settings.activation_checkpoint.layers != "none":
                self.student.enable_gradient_checkpointing(settings.activation_checkpoint.layers)
            self.model, self.weights = distributed.distribute(self.student, run, accelerator)
        self.objectives = objectives(run, self.student.target, rewards, rollouts)
        self.optimizer = accelerator.prepare(optimizer.build(self.weights.masters, settings))
        self._ahead: tuple[int, Future[Batch]] | None = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="batches")

    def __call__(self, step: int) -> dict[str, float]:
        """Do step number `step`, from 1; returns the numbers of its log line."""
        return self.begin(step)()

    def begin(self, step: int) -> PendingStep:
        """Do step number `step`, from 1, and do not wait for the device; the result, called, gives its log line."""
        return self._step(self.model, step)

    def is_logged(self, step: int) -> bool:
        """Whether the numbers of step number `step` are written down."""
        return step % self.run.train.log_every == 0 or step in (1, self.run.train.steps)

    def _step(self, model: Any, step: int) -> PendingStep:
        settings = self.run.train
        # Dropout, where it is asked for, is the only consumer of the global generator.
        torch.manual_seed(dropout_seed(self.run.seed, step, self.accelerator.process_index))
        self.student.train()
        schedule = settings.lr_schedule
        up, down = step / max(schedule.warmup, 1), (settings.steps - step + 1) / max(schedule.cooldown, 1)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.optimizer.lr * min(1.0, up, down)
        # Float32 gradients of bfloat16 weights are summed outside of the network: every part must be reduced.
        apart = self.weights.masters is not self.weights.working
        where: list[tuple[list[str], int]] = []
        seen: list[dict[str, Any]] = []
        for micro in range(settings.accumulate):
            number = (step - 1) * settings.accumulate + micro
            batch = self._batch(number)
            last = micro + 1 == settings.accumulate
            with nullcontext() if last or apart else self.accelerator.no_sync(model):
                loss, numbers = self.losses(model, batch, number)
                with blame_memory("the backward pass", self._advice()):
                    self.accelerator.backward(loss / settings.accumulate)
            with blame_memory("the gradients", "Use --student.kind lora"):
                self.weights.collect()
            where.append((list(batch.ids), number))
            seen.append(numbers)
        self.accelerator.unscale_gradients()
        norm = self.weights.clip(settings.optimizer.max_grad_norm)
        outcome = StepMetrics(seen, norm)
        if self.accelerator.num_processes > 1 and self.is_logged(step):
            rewards = [f"{what}/{name}" for name in self.rewards.names for what in ("reward", "routed")]
            outcome.share(self.accelerator, ("loss", "cd_loss", "grad_norm", *rewards))
        with blame_memory("the optimiser", "Use --student.kind lora"):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.weights.publish()
        return functools.partial(self._told, step, outcome, where, self.optimizer.param_groups[0]["lr"])

    def _told(self, step: int, outcome: StepMetrics, where: list[tuple[list[str], int]], lr: float) -> dict[str, float]:
        """A step's log line; over all processes, where there are several and the step is logged.

        Raises:
            GuidedCDError: The loss or the gradient is not finite, and so the weights are not.
        """
        found = outcome.wait()
        for loss, samples in zip(found.losses, where, strict=True):
            if not math.isfinite(loss):
                raise GuidedCDError(self._not_finite(f"the loss ({found.line})", step, *samples))
        scaler = self.accelerator.scaler
        # Half precision overflows at first: its scaler skips such steps.
        if (scaler is None or scaler.get_scale() <= 1) and not math.isfinite(found.line["grad_norm"]):
            raise GuidedCDError(self._not_finite("the gradient", step, *where[-1]))
        return (found.line if found.everywhere is None else found.everywhere) | {"lr": lr}

    def losses(self, model: Any, batch: Batch, number: int) -> tuple[Tensor, dict[str, Any]]:
        """The total loss of one batch, and its metrics for the log, on the device; see `objectives`."""
        step = BatchStep(
            run=self.run,
            model=model,
            batch=batch,
            number=number,
            schedule=self.schedule,
            grid=self.grid,
            accelerator=self.accelerator,
            advice=self._advice(),
        )
        return total_loss(self.objectives, step)

    def _batch(self, number: int) -> Batch:
        """Batch `number`, on the device; the next one is read meanwhile."""

        def read(number: int) -> Batch:
            return self.batches(number).to(self.device)

        ahead = self._ahead
        batch = ahead[1].result() if ahead is not None and ahead[0] == number else read(number)
        self._ahead = (number + 1, self._reader.submit(read, number + 1))
        return batch

    def _not_finite(self, what: str, step: int, ids: list[str], number: int) -> str:
        own = self.rollouts.chosen(number) if self.rollouts is not None else []
        names = [*ids, *(f"'{sample.caption}'" for sample, _ in own)]
        return (
            f"{what} is not finite at step {step}, samples {', '.join(names)}. {self._good()}; "
            "lower --train.optimizer.lr, the energies' scale or the rewards' weight and start with --new."
        )

    def _good(self) -> str:
        """Which state before the present one is left."""
        return "There is no checkpoint"

    def _advice(self) -> str:
        settings = self.run.train
        recomputes = settings.activation_checkpoint.layers != "none"
        if settings.batch_size > 1:
            half = settings.batch_size // 2
            return (
                f"It needs less with --train.batch-size {half} --train.accumulate "
                f"{settings.accumulate * settings.batch_size // half}, the same batch in parts"
                + ("" if recomputes else ", or with --train.activation-checkpoint.layers all")
                + "."
            )
        if not recomputes:
            return "It needs less with --train.activation-checkpoint.layers all."
        return "It needs less with --student.kind lora."
