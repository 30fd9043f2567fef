"""Prediction of the time, memory and disk space of preprocessing and training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs

from guidedcd.config.run import Run
from guidedcd.config.sections import OptimizerConfig
from guidedcd.errors import GuidedCDError
from guidedcd.planning.gpus import GB, Machine
from guidedcd.planning.preprocess_cost import Teaching, teaching
from guidedcd.planning.skeletons import outline
from guidedcd.planning.training_cost import Training, others, scoring, training
from guidedcd.preprocessing.estimates import store_bytes

CHECKPOINTS = 3
"""Checkpoints on disk at once: two, and the next one while it is written."""
SPARE = 0.06
"""Share of the device's memory that is lost between allocations."""
CONTEXT = 0.6 * GB
"""Bytes that the driver and its libraries occupy."""


@attrs.frozen(kw_only=True)
class Stage:
    """The cost of one stage."""

    tflop: float
    """Operations of all processes, in units of 1e12."""
    device_hours: float
    """Sum of all processes."""
    hours: float
    """Duration."""
    each_seconds: float
    """Seconds of one video, or of one step."""
    peak_gb: float
    """Memory of one process, in units of 2^30 bytes."""
    disk_gb: float
    """In units of 2^30 bytes."""
    largest_batch: int
    """The largest batch size that fits; 0 where none does."""


class Estimator:
    """Predicts runs that differ in a few settings; equal stages are counted once.

    Args:
        machine: The device of every process.
        processes: Number of processes that share the work.
    """

    def __init__(self, machine: Machine, processes: int = 1) -> None:
        self.machine, self.processes = machine, processes
        self.left_out: dict[str, str] = {}
        """Components that cannot be counted, and why."""
        self._cache: dict[Any, Any] = {}

    def preprocess(self, run: Run) -> Stage:
        """The cost of computing the store of a run."""
        counted, videos = self.teaching(run), run.preprocess.videos
        seconds = counted.seconds(self._on(run.preprocess.fast))
        cond = sum(math.prod(shape) * width for shape, width in counted.cond.values())
        return Stage(
            tflop=counted.flops() * videos / 1e12,
            device_hours=seconds * videos / 3600,
            hours=seconds * videos / 3600 / self.processes,
            each_seconds=seconds,
            peak_gb=counted.peak / GB,
            disk_gb=store_bytes(run, counted.latent, cond) / GB,
            largest_batch=self._largest(run, "preprocess", self.teaching),
        )

    def train(self, run: Run) -> Stage:
        """The cost of training the student of a run, without its evaluation."""
        counted, settings = self.training(run), run.train
        seconds = counted.seconds(self._on(settings.fast))
        per_step = settings.accumulate * self.processes
        return Stage(
            tflop=counted.flops * per_step * settings.steps / 1e12,
            device_hours=seconds * settings.steps * self.processes / 3600,
            hours=seconds * settings.steps / 3600,
            each_seconds=seconds,
            peak_gb=counted.peak / GB,
            disk_gb=run_bytes(run, counted) / GB,
            largest_batch=self._largest(run, "train", self.training),
        )

    def teaching(self, run: Run) -> Teaching:
        """The costs of the teacher's passes for a run."""
        kinds = tuple(sorted({config.reference for config in run.energies.values()}))
        settings = run.preprocess
        key = ("teach", settings.batch_size, settings.precision, settings.recompute, len(kinds), tuple(run.energies))
        costs = self._once(key, lambda: teaching(run, outline(run.teacher)))
        if costs.left_out:
            self.left_out["the computation of the energies"] = costs.left_out
        return attrs.evolve(costs, run=run)

    def training(self, run: Run) -> Training:
        """The costs of one batch of training."""
        settings = run.train
        scaled = attrs.evolve(settings, steps=1, accumulate=1, optimizer=OptimizerConfig(), reward_batch=None)
        cond = {name: shape for name, (shape, _) in self.teaching(run).cond.items()}
        step = self._once(
            ("train", run.student, scaled, tuple(run.energies), bool(run.rewards)),
            lambda: training(run, outline(run.teacher), cond),
        )
        rewards, beside = None, 0
        if run.rewards:
            sizes = (settings.batch_size, settings.rollouts.videos, settings.reward_batch)
            recomputes = settings.activation_checkpoint.recomputes_decoder
            key = (*sizes, settings.precision, recomputes, *run.rewards.items())
            rewards, beside = self._once(key, lambda: self._rewards(run))
        return attrs.evolve(step, run=run, rewards=rewards, others=beside).sized(self.processes)

    def _rewards(self, run: Run) -> tuple[Any, int]:
        modules: dict[str, Any] = {}
        for chosen in run.chosen("reward"):
            try:
                modules[chosen.name] = outline(chosen)
            except GuidedCDError as error:
                self.left_out[f"reward {chosen.name}"] = str(error)
        teacher = outline(run.teacher)
        beside = others(run, teacher, modules)
        try:
            return scoring(run, teacher, modules) if modules else None, beside
        except Exception:
            for name in list(modules):  # find the rewards that fail
                try:
                    scoring(run, teacher, {name: modules[name]})
                except Exception as error:
                    self.left_out[f"reward {name}"] = f"it does not run on the meta device ({_first_line(error)})"
                    del modules[name]
            return scoring(run, teacher, modules) if modules else None, beside

    def _once(self, key: Any, make: Any) -> Any:
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def _on(self, fast: str) -> Machine:
        return self.machine.with_layers(fast)

    def _largest(self, run: Run, section: str, count: Callable[[Run], Any]) -> int:
        """The largest batch size that fits, extrapolated linearly from the memory at two batch sizes."""
        batch, room = getattr(run, section).batch_size, usable(self.machine)
        peak = count(run).peak
        other = max(1, int(batch * min(room / peak, 4.0)))  # larger batches take longer to count
        other += other == batch
        changed = attrs.evolve(getattr(run, section), batch_size=other)
        slope = (count(attrs.evolve(run, **{section: changed})).peak - peak) / (other - batch)
        return max(0, math.floor(batch + (room - peak) / max(slope, 1)))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def usable(machine: Machine) -> float:
    """Bytes of a device that a run may use."""
    return machine.memory * (1 - SPARE) - CONTEXT


def run_bytes(run: Run, counted: Training) -> float:
    """Bytes of a run's folder at its largest: checkpoints with the optimiser's state, and the student.

    Weights are written in float32; of a student with adapters, the adapters only.
    """
    average = run.student.ema is not None or run.train.average is not None
    numbers = counted.trained if run.student.kind == "lora" else counted.whole
    student = 4 * numbers * (2 if average else 1)
    states = (2 + 8 / 256 if run.train.optimizer.name == "adamw-8bit" else 8) * counted.trained
    saves = (run.train.steps - 1) // run.train.checkpoint.every
    return min(saves, CHECKPOINTS) * (student + states) + student
