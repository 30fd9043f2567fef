"""The training loop: batches from a store, a log, checkpoints, exact resume, and the student at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from guidedcd.acceleration.garbage import settled
from guidedcd.config.run import Run
from guidedcd.console import console, progress
from guidedcd.data.routing import Sample, rules_of
from guidedcd.devices import blame_memory
from guidedcd.files import leftovers, replacing
from guidedcd.models.student import write_checksums
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.preprocessing.bucket_stores import BucketStores
from guidedcd.preprocessing.store import LatentStore
from guidedcd.rewards.contract import build_rewards
from guidedcd.rewards.scorer import RewardScorer
from guidedcd.training import checkpoint
from guidedcd.training.batches import Batches
from guidedcd.training.distributed import accelerator_for
from guidedcd.training.interrupt import interruptible
from guidedcd.training.log import Log, read_log
from guidedcd.training.rollouts import Rollouts
from guidedcd.training.sentinel import Sentinel
from guidedcd.training.step import PendingStep, TrainStep
from guidedcd.training.trackers import tracked
from guidedcd.training.validation import Validation

FEWEST_SCORES = 3
"""A reward with fewer steps may have the same score by chance."""


class Trainer:
    """Trains a student on stored draws and routed rewards, in a run's folder.

    Args:
        run: The configuration.
        folder: The run's folder, for the log, the checkpoints and the student.
        store: The run's latent store, complete, or its stores of several sizes.
        teacher: The run's teacher on its device; the student takes over its denoiser.
        accelerator: One for the run's precision and device by default.
        rewards: The run's rewards by name, where they are built already.

    Raises:
        GuidedCDError: A reward cannot be loaded, or the memory is exhausted.
    """

    def __init__(
        self,
        run: Run,
        folder: Path,
        store: LatentStore | BucketStores,
        teacher: Teacher,
        accelerator: Accelerator | None = None,
        rewards: Mapping[str, Any] | None = None,
    ) -> None:
        self.run, self.folder, self.checkpoints = run, folder, folder / "checkpoints"
        self.accelerator = accelerator or accelerator_for(run, teacher.device)
        scorer = _reward_scorer(run, teacher, rewards)
        batches = Batches(
            store,
            readers=scorer.readers,
            rules=rules_of(run),
            energies=run.energies,
            size=run.train.batch_size,
            omega=run.solver.omega,
            seed=run.seed,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )
        rollouts = None
        if run.train.rollouts.videos and scorer.scores_own_videos:
            rollouts = Rollouts(
                run,
                teacher,
                (Sample(**fields) for fields in store.samples),
                routed=batches.routed,
                process=self.accelerator.process_index,
                processes=self.accelerator.num_processes,
            )
        self.validation = Validation(run, folder, teacher) if run.train.validation.every else None
        self.sentinel: Sentinel | None = None
        if run.train.sentinel.every:
            main = self.accelerator.is_main_process
            stored = store if isinstance(store, LatentStore) else store.largest
            self.sentinel = Sentinel(run, folder, teacher, scorer, stored, write=main)
        samples = self.validation is not None or self.sentinel is not None or rollouts is not None
        text = getattr(teacher, "text", None)
        if not samples and isinstance(text, nn.Module):
            text.to("cpu")  # the store holds the embedded captions
        self.step = TrainStep(
            run,
            teacher,
            self.accelerator,
            rewards=scorer,
            batches=batches,
            rollouts=rollouts,
            last_checkpoint=self._last_checkpoint,
        )
        self.waits = teacher.device.type != "cuda"
        """Whether a step is logged before the next one begins; a GPU computes it while the host launches the next."""

    def fit(self) -> Path:
        """Train from the newest checkpoint, or from the start, to the end; returns the student's folder.

        Raises:
            GuidedCDError: A loss or a gradient is not finite, a checkpoint is damaged, the disk is full, or the memory
                is exhausted.
            KeyboardInterrupt: After Ctrl-C or SIGTERM, once the step is finished and saved.
        """
        settings, done = self.run.train, self._restore()
        last = settings.steps
        with (
            settled(),
            tracked(self.accelerator, self.run, self.folder),
            interruptible() as stop,
            progress("train", last, start=done, unit="steps") as advance,
        ):
            line = _LogLine(self, done, advance)
            pending: tuple[int, PendingStep] | None = None
            for number in range(done + 1, last + 1):
                try:
                    launched = self.step.begin(number)
                finally:  # a step may fail for what the one before did: that one is reported first
                    if pending is not None:
                        line(*pending)
                stopping = stop.after(number)
                validates, checks = _is_due(settings.validation.every, number), _is_due(settings.sentinel.every, number)
                saves = self._saves(number, stopping)
                pending = number, launched
                # Weights that may not be finite are neither saved nor sampled.
                if self.waits or validates or checks or saves or number == last:
                    line(*pending)
                    pending = None
                if validates:
                    self._validate(number)
                if checks and self.sentinel is not None:
                    self.sentinel(self.step.student, self.step.weights, number)
                if saves:
                    self._save(number)
                if stopping and number < last:
                    raise stop.exception()
        line.print_unused_rewards()
        target = self.folder / "student"
        self.write_student(target)
        self.accelerator.wait_for_everyone()
        if stop.is_set:
            raise stop.exception()
        return target

    def write_student(self, target: Path) -> None:
        """Write the trained student, or its average, to `target`; to be called in every process."""
        online, average = checkpoint.weights_of(self.step.weights)
        if not self.accelerator.is_main_process:
            return
        with replacing(target) as temporary:
            checkpoint.write_student(temporary, self.step.student, online, average)
            write_checksums(temporary)
        console.print(f"student  {target}")

    def _restore(self) -> int:
        """Load the newest checkpoint, if there is one; returns the number of its step."""
        done = 0
        if saved := checkpoint.paths(self.checkpoints):
            done = checkpoint.load(
                saved[-1],
                self.step.weights,
                self.step.optimizer,
                self.accelerator.scaler,
                student=self.step.student,
            )
            console.print(f"train    continuing after step {done} ({saved[-1]})")
        if self.sentinel is not None:
            self.sentinel.restore(done)
        if self.accelerator.is_main_process:
            leftovers(self.folder)
            leftovers(self.checkpoints)
        return done

    def _last_checkpoint(self) -> str:
        saved = checkpoint.paths(self.checkpoints)
        return f"The last good checkpoint is {saved[-1]}" if saved else "There is no checkpoint yet"

    def _saves(self, number: int, stopping: bool) -> bool:
        settings = self.run.train
        return (number % settings.checkpoint.every == 0 or stopping) and number < settings.steps

    def _validate(self, number: int) -> None:
        if self.validation is not None:
            main = self.accelerator.is_main_process
            self.validation(self.step.student, self.step.weights, number, write=main)

    def _save(self, number: int) -> None:
        checkpoint.save(
            self.checkpoints,
            number,
            self.step.student,
            self.step.weights,
            self.step.optimizer,
            self.accelerator.scaler,
            write=self.accelerator.is_main_process,
        )
        self.accelerator.wait_for_everyone()


def _is_due(every: int | None, number: int) -> bool:
    """Whether something that is done after each `every` steps follows step `number`."""
    return every is not None and number % every == 0


class _LogLine:
    """Writes the line of a finished step to the log, the tracker and the progress bar."""

    def __init__(self, trainer: Trainer, done: int, advance: Callable[..., None]) -> None:
        self.trainer, self.done, self.advance, self.began = trainer, done, advance, time.perf_counter()
        self.log: Log | None = None
        self.scores: dict[str, list[float]] = {name: [] for name in trainer.run.rewards}
        """Mean score of each reward at the steps that scored a sample."""
        if trainer.accelerator.is_main_process:
            self.log = Log(trainer.folder / "log.jsonl", resumed_at=done)
            for line in read_log(trainer.folder / "log.jsonl"):
                self._note_scores(line)

    def _note_scores(self, line: Mapping[str, float]) -> None:
        for name, scores in self.scores.items():
            if line.get(f"routed/{name}", 0) > 0:
                scores.append(line.get(f"reward/{name}", math.nan))

    def print_unused_rewards(self) -> None:
        """Name the rewards that scored no sample of the whole run, or all samples the same."""
        rewards = self.trainer.step.rewards
        for name, reader in rewards.readers.items():
            scores = self.scores[name]
            if len(scores) >= FEWEST_SCORES and len(set(scores)) == 1:
                console.print(
                    f"warning  {rewards.whose[name]} scored {scores[0]:g} at each of {len(scores):,} steps, so that it "
                    "trained nothing. Look at what it scores with `guidedcd try reward`.",
                    markup=False,
                )
            if not scores:
                console.print(
                    f"warning  {rewards.whose[name]} scored no sample, so that it trained nothing: no route sends "
                    f"it one, or captions are longer than its {reader.max_tokens} tokens. See `guidedcd data inspect`.",
                    markup=False,
                )

    def __call__(self, number: int, pending: PendingStep) -> None:
        line = pending()
        self._note_scores(line)
        self.advance(1, f"loss {line['loss']:.3f}")
        if not self.trainer.step.is_logged(number):
            return
        settings, accelerator = self.trainer.run.train, self.trainer.accelerator
        seconds = time.perf_counter() - self.began
        samples = (number - self.done) * settings.batch_size * settings.accumulate * accelerator.num_processes
        line |= {"step": number, "samples_per_second": round(samples / seconds, 3)}
        if torch.cuda.is_available():
            line["memory_gb"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        if self.log is not None:
            self.log.write(line | {"seconds": round(self.log.seconds + seconds, 2)})
        accelerator.log(line, step=number)


def _reward_scorer(run: Run, teacher: Teacher, rewards: Mapping[str, Any] | None) -> RewardScorer:
    """The run's rewards on the teacher's device."""
    with blame_memory("the rewards", "Use fewer --rewards"):
        built = build_rewards(run) if rewards is None else rewards
        modules = {name: module.to(teacher.device) for name, module in built.items()}
        return RewardScorer(
            {name: (modules[name], config) for name, config in run.rewards.items()},
            teacher,
            whose={name: str(run.component("reward", name)) for name in modules},
            low_memory=run.train.activation_checkpoint.recomputes_decoder,
        )
