"""The prediction for a run: seconds, bytes of memory and of disk, of preprocessing and training."""

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
        """Components that cannot be counted, and why."""
        self._found: dict[Any, Any] = {}

    def preprocess(self, run: Run) -> Stage:
        """The store of a run."""
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
        """The student of a run, without its evaluation."""
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
        """What the teacher does for one video."""
        kinds = tuple(sorted({config.reference for config in run.energies.values()}))
        settings = run.preprocess
        key = ("teach", settings.batch_size, settings.precision, settings.recompute, len(kinds), tuple(run.energies))
        found = self._once(key, lambda: teaching(run, outline(run.teacher)))
        if found.left_out:
            self.left_out["what the energies compute"] = found.left_out
        return attrs.evolve(found, run=run)

    def training(self, run: Run) -> Training:
        """What one batch takes."""
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
        found = attrs.evolve(step, run=run, rewards=rewards, others=beside)
        return found.sized(self.processes)

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
            for name in list(modules):  # whose fault is it?
                try:
                    scoring(run, teacher, {name: modules[name]})
                except Exception as error:
                    self.left_out[f"reward {name}"] = f"it does not run without memory ({_first_line(error)})"
                    del modules[name]
            return scoring(run, teacher, modules) if modules else None, beside

    def _once(self, key: Any, make: Any) -> Any:
        if key not in self._found:
            self._found[key] = make()
        return self._found[key]

    def _on(self, fast: str) -> Machine:
        return self.machine.with_layers(fast)

    def _largest(self, run: Run, section: str, count: Callable[[Run], Any]) -> int:
        """The largest batch size that fits: memory at two sizes, and a line through both."""
        batch, room = getattr(run, section).batch_size, usable(self.machine)
        peak = count(run).peak
        other = max(1, int(batch * min(room / peak, 4.0)))  # longer lists take longer to count
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

    Weights are written in float32; of adapters, they alone.
    """
    average = run.student.ema is not None or run.train.average is not None
    numbers = counted.trained if run.student.kind == "lora" else counted.whole
    student = 4 * numbers * (2 if average else 1)
    states = (2 + 8 / 256 if run.train.optimizer.name == "adamw-8bit" else 8) * counted.trained
    saves = (run.train.steps - 1) // run.train.checkpoint.every
    return min(saves, CHECKPOINTS) * (student + states) + student
