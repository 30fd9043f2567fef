"""The prediction for a run: seconds, bytes of memory and of disk, of preprocessing and training."""

from __future__ import annotations

from math import prod
from typing import Any

import attrs

from guidedcd.errors import GuidedCDError
from guidedcd.plan.machines import GB, Machine
from guidedcd.plan.outlines import outline
from guidedcd.plan.passes import store_bytes
from guidedcd.plan.teaching import Teaching, teaching
from guidedcd.plan.training import Training, others, scoring, training
from guidedcd.run import Run

CHECKPOINTS = 3
"""On disk at once: two are kept while the next one is written."""
SPARE = 0.06
"""Of the device's memory, lost between allocations."""
CONTEXT = 0.6 * GB
"""Held by the driver and its libraries."""


@attrs.frozen(kw_only=True)
class Stage:
    """What one stage takes."""

    tflop: float
    """Operations in all, of all processes."""
    device_hours: float
    """Of all processes together."""
    hours: float
    """Until it is done."""
    each_seconds: float
    """Seconds of one video, or of one step."""
    peak_gb: float
    """Of one process."""
    disk_gb: float
    largest_batch: int
    """The largest batch size that fits; 0 where none does."""


class Estimator:
    """Predicts runs that differ in a few settings; nothing is counted twice.

    Args:
        machine: The device of every process.
        processes: How many share the work.
    """

    def __init__(self, machine: Machine, processes: int = 1) -> None:
        self.machine, self.processes = machine, processes
        self.left_out: dict[str, str] = {}
        """Rewards that cannot be counted, and why."""
        self._found: dict[Any, Any] = {}

    def preprocess(self, run: Run) -> Stage:
        """The store of a run."""
        counted, videos = self.teaching(run), run.preprocess.videos
        seconds = counted.seconds(self._on(run.preprocess.fast))
        cond = sum(prod(shape) * width for shape, width in counted.cond.values())
        most = max(c.peak for c in (counted.forward, counted.guided, counted.encode) if c is not None)
        return Stage(
            tflop=counted.flops() * videos / 1e12,
            device_hours=seconds * videos / 3600,
            hours=seconds * videos / 3600 / self.processes,
            each_seconds=seconds,
            peak_gb=counted.peak / GB,
            disk_gb=store_bytes(run, counted.latent, cond) / GB,
            largest_batch=self._fits(counted.resident, most / counted.batch),
        )

    def train(self, run: Run) -> Stage:
        """The student of a run, without its evaluation."""
        counted, settings = self.training(run), run.train
        seconds = counted.seconds(self._on(settings.fast))
        graded = counted.trained * (2 if settings.precision == "bf16" else 4)
        decoded = min(settings.batch_size, settings.reward_batch or settings.batch_size)
        scored = counted.rewards.peak / decoded if counted.rewards else 0
        per_sample = max(counted.step.peak - graded, counted.held) / settings.batch_size
        fixed = counted.sizes.between + counted.others + graded
        if settings.reward_batch is None:
            per_sample = max(per_sample, counted.held / settings.batch_size + scored)
        else:
            fixed += max(0, counted.held + scored * decoded - counted.step.peak)
        per_step = settings.accumulate * self.processes
        return Stage(
            tflop=counted.flops * per_step * settings.steps / 1e12,
            device_hours=seconds * settings.steps * self.processes / 3600,
            hours=seconds * settings.steps / 3600,
            each_seconds=seconds,
            peak_gb=counted.peak / GB,
            disk_gb=run_bytes(run, counted) / GB,
            largest_batch=self._fits(fixed, per_sample),
        )

    def teaching(self, run: Run) -> Teaching:
        """What the teacher does for one video."""
        kinds = tuple(sorted({config.reference for config in run.energies.values()}))
        settings = run.preprocess
        key = ("teach", settings.batch_size, settings.precision, settings.recompute, len(kinds), tuple(run.energies))
        found = self._once(key, lambda: teaching(run, outline(run.teacher)))
        return attrs.evolve(found, run=run)

    def training(self, run: Run) -> Training:
        """What one batch takes."""
        settings = run.train
        scaled = attrs.evolve(settings, steps=1, lr=1, accumulate=1, optimizer="adamw", reward_batch=None)
        cond = {name: shape for name, (shape, _) in self.teaching(run).cond.items()}
        step = self._once(
            ("train", run.student, scaled, tuple(run.energies)), lambda: training(run, outline(run.teacher), cond)
        )
        rewards, beside = None, 0
        if run.rewards:
            key = (
                *(settings.batch_size, settings.reward_batch, settings.precision, settings.gradient_checkpointing),
                settings.decoder_checkpointing,
                *run.rewards.items(),
            )
            rewards, beside = self._once(key, lambda: self._rewards(run))
        found = attrs.evolve(step, run=run, rewards=rewards, others=beside)
        return found.sized(self.processes)

    def _rewards(self, run: Run) -> tuple[Any, int]:
        modules: dict[str, Any] = {}
        for chosen in run.chosen("reward"):
            try:
                modules[chosen.name] = outline(chosen)
            except GuidedCDError as error:
                self.left_out[chosen.name] = str(error)
        teacher = outline(run.teacher)
        beside = others(run, teacher, modules)
        return (scoring(run, teacher, modules) if modules else None), beside

    def _once(self, key: Any, make: Any) -> Any:
        if key not in self._found:
            self._found[key] = make()
        return self._found[key]

    def _on(self, fast: str) -> Machine:
        return self.machine.with_layers(fast)

    def _fits(self, fixed: float, per_sample: float) -> int:
        return max(0, int((usable(self.machine) - fixed) / max(per_sample, 1)))


def usable(machine: Machine) -> float:
    """Bytes of a device that a run may use."""
    return machine.memory * (1 - SPARE) - CONTEXT


def run_bytes(run: Run, counted: Training) -> float:
    """Bytes of a run's folder at its largest: checkpoints with the optimiser's state, and the student.

    Weights are written in float32; of adapters, they alone.
    """
    average = run.student.ema is not None or run.train.average is not None
    numbers = counted.trained if run.student.kind == "lora" else counted.whole
    student = 4 * numbers * (2 if average else 1)
    states = (2 + 8 / 256 if run.train.optimizer == "adamw-8bit" else 8) * counted.trained
    saves = (run.train.steps - 1) // run.train.save_every
    return min(saves, CHECKPOINTS) * (student + states) + student
