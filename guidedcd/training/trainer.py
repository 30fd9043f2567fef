"""The training loop: batches from a store, a log, checkpoints, exact resume, and the student at the end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from guidedcd.acceleration.garbage import settled
from guidedcd.config.run import Run
from guidedcd.console import console, progress
from guidedcd.data.routing import Sample
from guidedcd.devices import blame_memory
from guidedcd.files import leftovers, replacing
from guidedcd.preprocessing.store import LatentStore
from guidedcd.rewards.scorer import RewardScorer
from guidedcd.training import checkpoint
from guidedcd.training.batches import Batches
from guidedcd.training.distributed import accelerator_for
from guidedcd.training.interrupt import interruptible
from guidedcd.training.log import Log
from guidedcd.training.rollouts import Rollouts
from guidedcd.training.step import PendingStep, TrainStep
from guidedcd.training.trackers import tracked
from guidedcd.training.validation import Validation


class Trainer(TrainStep):
    """Optimises a student on stored draws and routed rewards, in a run's folder. The teacher is used up."""

    def __init__(
        self, run: Run, folder: Path, store: LatentStore, teacher: Any, accelerator: Accelerator | None = None
    ) -> None:
        accelerator = accelerator or accelerator_for(run, teacher.device)
        settings = run.train
        with blame_memory("the rewards", "Use fewer --rewards"):
            modules = {name: module.to(teacher.device) for name, module in run.build("reward").items()}
            rewards = RewardScorer(
                {name: (modules[name], config) for name, config in run.rewards.items()},
                teacher,
                whose={name: str(run.component("reward", name)) for name in modules},
                low_memory=settings.activation_checkpoint.recomputes_decoder,
            )
        batches = Batches(
            store,
            readers=rewards.readers,
            rules=list(run.build("route").values()),
            energies=run.energies,
            size=settings.batch_size,
            omega=run.solver.omega,
            seed=run.seed,
            process=accelerator.process_index,
            processes=accelerator.num_processes,
        )
        rollouts = None
        if settings.rollouts.videos and rewards.names:
            rollouts = Rollouts(
                run,
                teacher,
                (Sample(**about) for about in store.samples),
                routed=batches.routed,
                process=accelerator.process_index,
                processes=accelerator.num_processes,
            )
        self.validation = Validation(run, folder, teacher) if settings.validation.every else None
        if self.validation is None and rollouts is None and isinstance(getattr(teacher, "text", None), nn.Module):
            teacher.text.to("cpu")  # captions are in the store
        super().__init__(run, teacher, accelerator, rewards=rewards, batches=batches, rollouts=rollouts)
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.waits = teacher.device.type != "cuda"
        """Whether a step is told before the next one begins; a GPU computes while the next one is being launched."""

    def fit(self) -> Path:
        """Train from the newest checkpoint, or from the start, to the end; returns the student's folder."""
        settings, done, main = self.run.train, 0, self.accelerator.is_main_process
        if saved := checkpoint.found(self.checkpoints):
            done = checkpoint.load(saved[-1], self.weights, self.optimizer, self.accelerator.scaler)
            console.print(f"train    continuing after step {done} ({saved[-1]})")
        if main:
            leftovers(self.folder)
            leftovers(self.checkpoints)
            log = Log(self.folder / "log.jsonl", resumed_at=done)
        began = time.perf_counter()
        with (
            settled(),
            tracked(self.accelerator, self.run, self.folder),
            interruptible() as stop,
            progress("train", settings.steps, start=done, unit="steps") as advance,
        ):

            def tell(step: int, numbers: PendingStep) -> None:
                line = numbers()
                advance(1, f"loss {line['loss']:.3f}")
                if not self.is_logged(step):
                    return
                seconds = time.perf_counter() - began
                seen = (step - done) * settings.batch_size * settings.accumulate * self.accelerator.num_processes
                line |= {"step": step, "samples_per_second": round(seen / seconds, 3)}
                if torch.cuda.is_available():
                    line["memory_gb"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
                if main:
                    log.write(line | {"seconds": round(log.seconds + seconds, 2)})
                self.accelerator.log(line, step=step)

            before: tuple[int, PendingStep] | None = None
            for step in range(done + 1, settings.steps + 1):
                try:
                    begun = self.begin(step)
                finally:  # if this one fails, perhaps for what the one before did
                    if before is not None:
                        tell(*before)
                stopping, last = stop.after(step), step == settings.steps
                validates = self.validation is not None and step % settings.validation.every == 0
                saves = (step % settings.checkpoint.every == 0 or stopping) and not last
                before = step, begun
                if self.waits or validates or saves or last:  # nothing is made of weights that may not be finite
                    tell(*before)
                    before = None
                if validates:
                    self.validation(self.student, self.weights, step, write=main)
                if saves:
                    self._save(step)
                if stopping and not last:
                    raise stop.exception()
        target = self.folder / "student"
        self._finish(target)
        self.accelerator.wait_for_everyone()
        if stop.is_set:
            raise stop.exception()
        return target

    def _good(self) -> str:
        saved = checkpoint.found(self.checkpoints)
        return f"The last good checkpoint is {saved[-1]}" if saved else "There is no checkpoint yet"

    def _save(self, step: int) -> None:
        checkpoint.save(
            self.checkpoints,
            step,
            self.student,
            self.weights,
            self.optimizer,
            self.accelerator.scaler,
            write=self.accelerator.is_main_process,
        )
        self.accelerator.wait_for_everyone()

    def _finish(self, target: Path) -> None:
        online, average = checkpoint.weights_of(self.weights)
        if not self.accelerator.is_main_process:
            return
        with replacing(target) as temporary:
            checkpoint.write_student(temporary, self.student, online, average)
        console.print(f"student  {target}")
