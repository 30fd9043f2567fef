"""The training loop: accelerate, routed rewards, exact resume. It knows no component by name.

Legend: B samples of this process and step, E energies; latents (C, F, H, W).
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from guidedcd import checkpoint
from guidedcd.batches import Batch, Batches
from guidedcd.console import console, progress
from guidedcd.devices import part
from guidedcd.distil import consistency
from guidedcd.errors import GuidedCDError
from guidedcd.files import leftovers, replacing
from guidedcd.interrupt import interruptible
from guidedcd.rewards import Rewards
from guidedcd.run import Run
from guidedcd.runs import Log
from guidedcd.store import LatentStore
from guidedcd.student import Student


def accelerator_for(run: Run, where: torch.device) -> Accelerator:
    """Accelerate on a device, with the run's precision.

    Raises:
        GuidedCDError: The device cannot train in that precision.
    """
    precision = run.train.precision
    if precision == "fp16" and where.type != "cuda":
        raise GuidedCDError("--train.precision fp16 needs an NVIDIA GPU. Use bf16 or no.")
    return Accelerator(mixed_precision=precision, cpu=where.type == "cpu")


class Trainer:
    """Optimises a student on stored draws and routed rewards.

    Every random number of a step depends on (seed, step) alone, so a resumed run repeats an uninterrupted one.
    Every process computes every objective on its own part of the batch.
    """

    def __init__(
        self, run: Run, folder: Path, store: LatentStore, teacher: Any, accelerator: Accelerator | None = None
    ) -> None:
        self.run, self.folder, self.teacher = run, folder, teacher
        settings = run.train
        if teacher.device.type == "cuda":
            torch.cuda.set_device(teacher.device)
        self.accelerator = accelerator or accelerator_for(run, teacher.device)
        self.schedule = teacher.schedule
        self.grid = self.schedule.grid(run.solver.steps)
        with part("the student", "Use --student.kind lora"):
            torch.manual_seed(run.seed)
            self.student = Student(teacher, run.student, tuple(run.energies)).to(teacher.device)
            if settings.gradient_checkpointing:
                self.student.enable_gradient_checkpointing()
        with part("the rewards", "Use fewer --rewards"):
            modules = {name: module.to(teacher.device) for name, module in run.build("reward").items()}
            self.rewards = Rewards(
                {name: (modules[name], config) for name, config in run.rewards.items()},
                teacher,
                whose={name: str(run.component("reward", name)) for name in modules},
                low_memory=settings.gradient_checkpointing,
            )
        self.batches = Batches(
            store,
            readers=self.rewards.readers,
            rules=list(run.build("route").values()),
            energies=run.energies,
            size=settings.batch_size,
            omega=run.solver.omega,
            seed=run.seed,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )
        self.optimizer = torch.optim.AdamW(
            self.student.trainable,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            fused=teacher.device.type == "cuda",
        )
        self.checkpoints = folder / "checkpoints"

    def fit(self) -> Path:
        """Train from the newest checkpoint, or from the start, to the end; returns the student's folder."""
        settings, done, main = self.run.train, 0, self.accelerator.is_main_process
        if saved := checkpoint.found(self.checkpoints):
            done = checkpoint.load(saved[-1], self.student, self.optimizer, self.accelerator.scaler)
            console.print(f"train    continuing after step {done} ({saved[-1]})")
        model, self.optimizer = self.accelerator.prepare(self.student, self.optimizer)
        if main:
            leftovers(self.folder)
            leftovers(self.checkpoints)
            log = Log(self.folder / "log.jsonl", resumed_at=done)
        began = time.perf_counter()
        with interruptible() as stop, progress("train", settings.steps, start=done, unit="steps") as advance:
            for step in range(done + 1, settings.steps + 1):
                line = self._step(model, step)
                if step % settings.log_every == 0 or step in (1, settings.steps):
                    seconds = time.perf_counter() - began
                    seen = (step - done) * settings.batch_size * settings.accumulate * self.accelerator.num_processes
                    line = self._everywhere(line)
                    line |= {"step": step, "samples_per_second": round(seen / seconds, 3)}
                    if torch.cuda.is_available():
                        line["memory_gb"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
                    if main:
                        log.write(line | {"seconds": round(log.seconds + seconds, 2)})
                advance(1, f"loss {line['loss']:.3f}")
                if (step % settings.save_every == 0 or stop.is_set) and step < settings.steps:
                    self._save(step)
                if stop.is_set and step < settings.steps:
                    raise KeyboardInterrupt
        target = self.folder / "student"
        if main:
            self._finish(target)
        self.accelerator.wait_for_everyone()
        if stop.is_set:
            raise KeyboardInterrupt
        return target

    def _step(self, model: Any, step: int) -> dict[str, float]:
        """One optimiser step; returns the numbers of its log line."""
        settings = self.run.train
        # Dropout, where it is asked for, is the only consumer of the global generator.
        torch.manual_seed(hash((self.run.seed, step, self.accelerator.process_index)) % 2**63)
        self.student.train()
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * min(1.0, step / max(settings.warmup, 1))
        seen: dict[str, list[float]] = {}
        for micro in range(settings.accumulate):
            number = (step - 1) * settings.accumulate + micro
            batch = self.batches(number).to(self.teacher.device)
            last = micro + 1 == settings.accumulate
            with nullcontext() if last else self.accelerator.no_sync(model):
                loss, numbers = self.losses(model, batch, number)
                self._must_be_finite(loss, f"the loss ({numbers})", step, batch)
                with part("the backward pass", self._advice()):
                    self.accelerator.backward(loss / settings.accumulate)
            for key, value in numbers.items():
                seen.setdefault(key, []).append(value)
        norm = self.accelerator.clip_grad_norm_(self.student.trainable, settings.max_grad_norm)
        scaler = self.accelerator.scaler
        if scaler is None or scaler.get_scale() <= 1:  # half precision overflows at first: its scaler skips such steps
            self._must_be_finite(norm, "the gradient", step, batch)
        with part("the optimiser", "Use --student.kind lora"):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.student.update_average()
        # A reward without samples in one of the batches has its mean over the others.
        means = {key: sum(values) / len(values) for key, values in seen.items()}
        return means | {"grad_norm": float(norm), "lr": self.optimizer.param_groups[0]["lr"]}

    def losses(self, model: Any, batch: Batch, number: int) -> tuple[Tensor, dict[str, float]]:
        """The total loss of one batch, and its parts for the log.

        total = consistency loss - sum over rewards of weight * mean score over the samples routed to it, where the mean
        runs over the samples of all processes.
        """
        run, processes = self.run, self.accelerator.num_processes
        with part("the student's forward pass", self._advice()), self.accelerator.autocast():
            loss, predicted = consistency(
                model,
                self.schedule,
                batch,
                grid=self.grid,
                solver=run.solver,
                energies=run.energies,
                loss=run.train.loss,
                huber_c=run.train.huber_c,
                target=self.student.target,
            )
        numbers = {"cd_loss": loss.item()}
        if self.rewards.names:
            generator = torch.Generator().manual_seed((self.run.seed * 1_000_003 + number) % 2**63)
            with part("the rewards", "Use --train.reward-batch 1"):
                scored = self.rewards(predicted, batch.routes, generator, limit=run.train.reward_batch)
            for name, scores in scored.items():
                count = torch.tensor(float(len(scores)), device=loss.device)
                if processes > 1:
                    count = self.accelerator.reduce(count, "sum")
                numbers[f"routed/{name}"] = len(scores) / len(batch.ids)
                if len(scores):
                    numbers[f"reward/{name}"] = scores.mean().item()
                    # DDP averages gradients over processes: times their number, over the samples of all of them.
                    loss = loss - run.rewards[name].weight * scores.sum() * processes / count
        return loss, {"loss": loss.item()} | numbers

    def _must_be_finite(self, value: Tensor, what: str, step: int, batch: Batch) -> None:
        if math.isfinite(value.item()):
            return
        saved = checkpoint.found(self.checkpoints)
        good = f"The last good checkpoint is {saved[-1]}" if saved else "There is no checkpoint yet"
        raise GuidedCDError(
            f"{what} is not finite at step {step}, samples {', '.join(batch.ids)}. {good}; "
            "lower --train.lr, the energies' scale or the rewards' weight and start with --new."
        )

    def _advice(self) -> str:
        settings = self.run.train
        if settings.batch_size > 1:
            half = settings.batch_size // 2
            return (
                f"It needs less with --train.batch-size {half} --train.accumulate "
                f"{settings.accumulate * settings.batch_size // half}, the same batch in parts"
                + ("" if settings.gradient_checkpointing else ", or with --train.gradient-checkpointing")
                + "."
            )
        if not settings.gradient_checkpointing:
            return "It needs less with --train.gradient-checkpointing."
        return "It needs less with --student.kind lora."

    def _everywhere(self, line: dict[str, float]) -> dict[str, float]:
        """Means over processes; a reward that was not scored on this one counts as not there."""
        if self.accelerator.num_processes == 1:
            return line
        keys = [
            "loss",
            "cd_loss",
            "grad_norm",
            *(f"{k}/{n}" for n in self.rewards.names for k in ("reward", "routed")),
        ]
        values = torch.tensor([line.get(key, math.nan) for key in keys], device=self.teacher.device)
        gathered = self.accelerator.gather(values[None])
        means = {k: float(v) for k, v in zip(keys, gathered.nanmean(0), strict=True) if not math.isnan(float(v))}
        return means | {"lr": line["lr"]}

    def _save(self, step: int) -> None:
        if self.accelerator.is_main_process:
            checkpoint.save(self.checkpoints, step, self.student, self.optimizer, self.accelerator.scaler)
        self.accelerator.wait_for_everyone()

    def _finish(self, target: Path) -> None:
        with replacing(target) as temporary:
            temporary.mkdir(parents=True)
            self.student.save(temporary)
        console.print(f"student  {target}")
