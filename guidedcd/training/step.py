"""One optimiser step: losses of routed samples, gradients, new weights. It reads and writes no files.

Legend: B samples of this process and step, E energies; latents (C, F, H, W).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import attrs
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from guidedcd.acceleration.autoencoders import speed_up_autoencoder_of
from guidedcd.acceleration.flash_attention import activate
from guidedcd.acceleration.options import choose, replays_rewards
from guidedcd.acceleration.switch import is_fast, speed_up
from guidedcd.config.run import Run
from guidedcd.devices import Stopwatch, blame_memory
from guidedcd.diffusion.consistency import Network
from guidedcd.diffusion.randomness import dropout_seed
from guidedcd.energies.output import OutputGradients
from guidedcd.errors import GuidedCDError
from guidedcd.models.student import Student
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.rewards.scorer import RewardScorer
from guidedcd.training import distributed, optimizer
from guidedcd.training.batches import Batch
from guidedcd.training.log import BY_NOISE, REWARD_SHARE, SHARE, SHARE_BY_NOISE
from guidedcd.training.losses import NOISE_LEVELS
from guidedcd.training.objectives import BatchStep, objectives, total_loss
from guidedcd.training.rollouts import Rollouts
from guidedcd.training.step_metrics import StepMetrics

PendingStep = Callable[[], dict[str, float]]
"""A launched step. Calling it waits for the device and returns the step's log line, or raises GuidedCDError where the
loss or the gradient is not finite."""


def no_checkpoint() -> str:
    """The end of an error about a step without any checkpoint before it."""
    return "There is no checkpoint"


class TrainStep:
    """A student with its optimiser, and one step of training.

    Every random number of a step depends on (seed, step) alone, so a resumed run repeats an uninterrupted one.
    Every process computes every objective on its own samples of the batch.

    Args:
        run: The configuration.
        teacher: The student takes over its denoiser. Modules that training does not use leave the device.
        accelerator: See `distributed.accelerator_for`.
        rewards: The rewards of the run, with the teacher's decoder.
        batches: Batch by number, for this process; on any device.
        rollouts: The student's own videos by number of the batch, for the rewards.
        last_checkpoint: Names the last good checkpoint, for the error of a step that is not finite.
    """

    def __init__(
        self,
        run: Run,
        teacher: Teacher,
        accelerator: Accelerator,
        *,
        rewards: RewardScorer,
        batches: Callable[[int], Batch],
        rollouts: Rollouts | None = None,
        last_checkpoint: Callable[[], str] = no_checkpoint,
    ) -> None:
        self.run, self.teacher, self.accelerator = run, teacher, accelerator
        self.rewards, self.batches, self.rollouts = rewards, batches, rollouts
        self.last_checkpoint = last_checkpoint
        settings, self.device = run.train, teacher.device
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        activate(settings, self.device)
        if replays_rewards(settings.fast, settings.replay_rewards):
            for module in rewards.modules.values():
                if callable(getattr(module, "use_graphs", None)):
                    module.use_graphs()
        self.schedule = teacher.schedule
        self.stopwatch = rewards.meter.stopwatch = Stopwatch(self.device)
        self.outputs = OutputGradients(run, teacher)
        self.grid = self.schedule.grid(run.solver.steps).to(self.device)
        with blame_memory("the student", "Use --student.kind lora"):
            torch.manual_seed(run.seed)
            _accelerate(teacher, settings.fast, distributed.weights_dtype(settings.precision))
            self.student = Student(teacher, run.student, tuple(run.energies), take=True).to(self.device)
            if settings.activation_checkpoint.layers != "none":
                self.student.enable_gradient_checkpointing(settings.activation_checkpoint.layers)
            self.student.train()
            self.model, self.weights = distributed.distribute(self.student, run, accelerator)
        self.objectives = objectives(run, self.student.target, rewards, rollouts)
        self.optimizer = accelerator.prepare(optimizer.build(self.weights.masters, settings))
        self._ahead: tuple[int, Future[Batch]] | None = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="batches")

    def __call__(self, number: int) -> dict[str, float]:
        """Do step `number`, from 1, and return its log line.

        Raises:
            GuidedCDError: The loss or the gradient is not finite, or the memory is exhausted.
        """
        return self.begin(number)()

    def begin(self, number: int) -> PendingStep:
        """Launch step `number`, from 1, without waiting for the device."""
        # Dropout, where it is configured, is the only consumer of the global generator.
        torch.manual_seed(dropout_seed(self.run.seed, number, self.accelerator.process_index))
        if not self.student.training:  # walking over all modules takes milliseconds
            self.student.train()
        self._schedule_learning_rate(number)
        self.stopwatch.is_on = self.is_logged(number)
        samples, metrics = self._backward(number)
        self.accelerator.unscale_gradients()
        norm = self.weights.clip(self.run.train.optimizer.max_grad_norm)
        step_metrics = StepMetrics(metrics, norm)
        if self.accelerator.num_processes > 1 and self.is_logged(number):
            kinds = ("reward/", "routed/", REWARD_SHARE)
            rewards = [f"{kind}{name}" for name in self.rewards.names for kind in kinds]
            shares = [f"{SHARE}{name}" for name in self.run.energies]
            levels = [str(level) for level in range(1, NOISE_LEVELS + 1)]
            shares += [f"{SHARE_BY_NOISE}{level}/{name}" for name in self.run.energies for level in levels]
            losses = [f"{BY_NOISE}{level}" for level in levels]
            step_metrics.share(self.accelerator, ("loss", "cd_loss", "grad_norm", *losses, *rewards, *shares))
        with blame_memory("the optimiser", "Use --student.kind lora"), self.stopwatch.part("optimizer"):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.weights.publish()
        lr, times = self.optimizer.param_groups[0]["lr"], self.stopwatch.take()
        return functools.partial(self._log_line, number, step_metrics, samples, lr, times)

    def is_logged(self, number: int) -> bool:
        """Whether step `number` has a line in the log."""
        return number % self.run.train.log_every == 0 or number in (1, self.run.train.steps)

    def _schedule_learning_rate(self, number: int) -> None:
        """Linear warm-up, a constant rate, and a linear decay to 0 after the last step."""
        settings, schedule = self.run.train, self.run.train.lr_schedule
        rise, fall = number / max(schedule.warmup, 1), (settings.steps - number + 1) / max(schedule.cooldown, 1)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.optimizer.lr * min(1.0, rise, fall)

    def _backward(self, step: int) -> tuple[list[tuple[list[str], int]], list[dict[str, Any]]]:
        """Add up the gradients of a step's batches: (sample ids and number, metrics) of each batch."""
        settings = self.run.train
        # Float32 gradients of bfloat16 weights are summed outside of the network, so each batch's must be reduced.
        summed_outside = self.weights.masters is not self.weights.working
        samples: list[tuple[list[str], int]] = []
        metrics: list[dict[str, Any]] = []
        for micro in range(settings.accumulate):
            number = (step - 1) * settings.accumulate + micro
            with self.stopwatch.part("batch"):
                batch = self._batch(number)
            last = micro + 1 == settings.accumulate
            with nullcontext() if last or summed_outside else self.accelerator.no_sync(self.model):
                loss, numbers = self.losses(self.model, batch, number)
                with blame_memory("the backward pass", self._advice()), self.stopwatch.part("backward"):
                    self.accelerator.backward(loss / settings.accumulate)
            with blame_memory("the gradients", "Use --student.kind lora"):
                self.weights.collect()
            numbers |= {f"{REWARD_SHARE}{name}": share for name, share in self.rewards.meter.shares().items()}
            samples.append((list(batch.ids), number))
            metrics.append(numbers)
        return samples, metrics

    def _log_line(
        self,
        step: int,
        metrics: StepMetrics,
        samples: list[tuple[list[str], int]],
        lr: float,
        times: Callable[[], dict[str, float]],
    ) -> dict[str, float]:
        """A step's log line: the means over all processes where the step is logged, else those of this process.

        Raises:
            GuidedCDError: The loss or the gradient is not finite, and so the weights are not.
        """
        result = metrics.wait()
        for name in self.outputs.energies:
            if result.line.get(f"{SHARE}{name}") == math.inf:
                whose = f"energy '{name}' of {self.outputs.plugins[name]}"
                raise GuidedCDError(self._not_finite(f"the gradient of {whose}", step, *samples[-1]))
        for loss, (ids, number) in zip(result.losses, samples, strict=True):
            if not math.isfinite(loss):
                raise GuidedCDError(self._not_finite(self._loss(result.line), step, ids, number))
        scaler = self.accelerator.scaler
        # Half precision overflows at first: its scaler skips such steps.
        if (scaler is None or scaler.get_scale() <= 1) and not math.isfinite(result.line["grad_norm"]):
            raise GuidedCDError(self._not_finite("the gradient", step, *samples[-1]))
        return (result.line if result.everywhere is None else result.everywhere) | {"lr": lr} | times()

    def _loss(self, line: Mapping[str, float]) -> str:
        """Name what made the loss not finite: a reward, or the loss with its terms."""
        for name, whose in self.rewards.whose.items():
            if not math.isfinite(line.get(f"reward/{name}", 0.0)):
                return f"the value of {whose}"
        left_out = ("routed/", REWARD_SHARE, SHARE_BY_NOISE)
        terms = ", ".join(f"{key} {value:.4g}" for key, value in line.items() if not key.startswith(left_out))
        return f"the loss ({terms})"

    def losses(self, model: Network, batch: Batch, number: int) -> tuple[Tensor, dict[str, Any]]:
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
            stopwatch=self.stopwatch,
            outputs=self.outputs,
        )
        return total_loss(self.objectives, step)

    def _batch(self, number: int) -> Batch:
        """Batch `number` on the device; a thread then reads the next one."""

        def read(number: int) -> Batch:
            return self.batches(number).to(self.device)

        ahead = self._ahead
        batch = ahead[1].result() if ahead is not None and ahead[0] == number else read(number)
        self._ahead = (number + 1, self._reader.submit(read, number + 1))
        return batch

    def _not_finite(self, what: str, step: int, ids: list[str], number: int) -> str:
        """The text of the error about batch `number` of a step."""
        prompts = self.rollouts.chosen(number) if self.rollouts is not None else []
        names = [*ids, *(f"'{sample.caption}'" for sample, _ in prompts)]
        return (
            f"{what} is not finite at step {step}, samples {', '.join(names)}. {self.last_checkpoint()}; "
            "lower --train.optimizer.lr, the energies' scale or the rewards' weight and start with --new."
        )

    def _advice(self) -> str:
        """Options that need less memory, for the error of a pass that runs out of it."""
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


def _accelerate(teacher: Teacher, fast: str, dtype: torch.dtype | None) -> None:
    """Move the decoder to `dtype`, and give the denoiser and the decoder the faster paths of `fast`, in place."""
    vae = getattr(teacher, "vae", None)
    if isinstance(vae, nn.Module) and dtype is not None:
        nn.Module.to(vae, dtype)
    paths = choose(fast, teacher.network, getattr(teacher, "blocks", ()))
    if paths is None or is_fast(teacher.network):
        return
    speed_up(teacher.network, **attrs.asdict(paths))
    if isinstance(vae, nn.Module) and type(vae).__name__ == "AutoencoderKL":
        speed_up(vae)
    speed_up_autoencoder_of(teacher, fast)
    # cudnn tries all algorithms of a convolution first, whose results may differ from run to run.
    torch.backends.cudnn.benchmark |= not torch.are_deterministic_algorithms_enabled()
