"""Prediction of the time, memory and disk space of preprocessing and training."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import attrs
import torch

from guidedcd.acceleration.options import replays_rewards
from guidedcd.config.kinds import Chosen
from guidedcd.config.run import Run
from guidedcd.config.sections import OptimizerConfig
from guidedcd.errors import GuidedCDError
from guidedcd.planning.calibration import calibrated
from guidedcd.planning.decode_cost import DecodeCost, decode_costs, has_policies
from guidedcd.planning.evaluation_cost import EvaluationCost, evaluation
from guidedcd.planning.gpus import GIB, Machine
from guidedcd.planning.largest_batch import largest_batch
from guidedcd.planning.preprocess_cost import Teaching, other_networks, teaching
from guidedcd.planning.replay_cost import replayed
from guidedcd.planning.skeletons import outline
from guidedcd.planning.training_cost import Training, others, scoring, training
from guidedcd.preprocessing.estimates import reference_kinds, store_bytes

CHECKPOINTS = 3
"""Checkpoints on disk at once: two, and the next one while it is written."""
SPARE = 0.06
"""Share of the device's memory that is lost between allocations."""
CONTEXT = 0.6 * GIB
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
    hours_range: tuple[float, float]
    """The shortest and the longest duration to be expected."""
    each_seconds: float
    """Seconds of one video, or of one step."""
    peak_gib: float | None = None
    """Memory of one process, in units of 2^30 bytes; None where it is not predicted."""
    disk_gb: float = 0.0
    """In units of 1e9 bytes."""
    largest_batch: int | None = None
    """The largest batch size that fits; 0 where none does, None where it is not predicted."""


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
        self._cache: dict[str, Any] = {}

    def calibrate(self, run: Run) -> None:
        """Measure a pass of the run's teacher on this machine, if it has no data sheet and the pass is short."""
        self.machine = calibrated(self.machine, run, self.teaching(run).forward)

    def preprocess(self, run: Run, *, largest: bool = True) -> Stage:
        """The cost of computing the store of a run; `largest` also predicts the largest batch."""
        counted, videos = self.teaching(run), run.preprocess.videos
        seconds = counted.seconds(self.on(run, run.preprocess.fast))
        cond = sum(math.prod(shape) * width for shape, width in counted.cond.values())
        return Stage(
            tflop=counted.flops() * videos / 1e12,
            **self._times(seconds * videos / self.processes, self.processes),
            each_seconds=seconds,
            peak_gib=counted.peak / GIB,
            disk_gb=store_bytes(run, counted.latent, cond) / 1e9,
            largest_batch=self._largest(run, "preprocess", self.teaching) if largest else None,
        )

    def train(self, run: Run, *, largest: bool = True) -> Stage:
        """The cost of training the student of a run; `largest` also predicts the largest batch."""
        counted, settings = self.training(run), run.train
        seconds = counted.seconds(self.on(run, settings.fast))
        per_step = settings.accumulate * self.processes
        return Stage(
            tflop=counted.flops * per_step * settings.steps / 1e12,
            **self._times(seconds * settings.steps, self.processes),
            each_seconds=seconds,
            peak_gib=counted.peak / GIB,
            disk_gb=run_bytes(run, counted) / 1e9,
            largest_batch=self._largest(run, "train", self.training) if largest else None,
        )

    def evaluate(self, run: Run) -> Stage:
        """The cost of the evaluation at the end of a run, which one process computes; without metrics."""
        settings = run.evaluate
        counted: EvaluationCost = self._once(
            ("evaluate", settings), lambda: evaluation(settings, self._outline(run.teacher))
        )
        seconds = counted.seconds(self.on(run, settings.fast))
        return Stage(
            tflop=counted.flops / 1e12, **self._times(seconds, 1), each_seconds=seconds / max(counted.videos, 1)
        )

    def _times(self, seconds: float, processes: int) -> dict[str, Any]:
        """The times of a stage that lasts so many seconds."""
        low, high = self.machine.range_of(seconds)
        return {
            "device_hours": seconds * processes / 3600,
            "hours": seconds / 3600,
            "hours_range": (low / 3600, high / 3600),
        }

    def teaching(self, run: Run) -> Teaching:
        """The costs of the teacher's passes for a run."""
        settings, kinds = run.preprocess, len({*reference_kinds(run).values()})
        weights = (settings.precision, settings.quantize)
        key = ("teach", settings.batch_size, weights, settings.recompute, kinds, tuple(run.energies))
        costs = self._once(key, lambda: teaching(run, self._outline(run.teacher)))
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
            lambda: training(run, self._outline(run.teacher), cond),
        )
        rewards, beside = None, 0
        if run.rewards:
            sizes = (settings.batch_size, settings.rollouts.videos, settings.reward_batch)
            recomputes = settings.activation_checkpoint.recomputes_decoder
            graphs = self.machine.kind == "cuda" and replays_rewards(settings.fast, settings.replay_rewards)
            key = (*sizes, settings.precision, recomputes, graphs, *run.rewards.items())
            rewards, beside = self._once(key, lambda: self._rewards(run, graphs))
        beside += self._once(("others", run.teacher.name), lambda: other_networks(self._outline(run.teacher)))
        return attrs.evolve(step, run=run, rewards=rewards, others=beside).sized(self.processes)

    def decodings(self, run: Run) -> list[DecodeCost]:
        """The costs of the ways to decode for a run's rewards; none where its teacher or rewards have no choice."""
        if not run.rewards:
            return []
        teacher = self._outline(run.teacher)
        if not has_policies(teacher):
            return []
        on = self.machine.with_layers(run.train.fast)
        if run.train.precision == "bf16":
            torch.nn.Module.to(teacher.vae, torch.bfloat16)
        return decode_costs(run, teacher, self._reward_outlines(run), on)

    def _reward_outlines(self, run: Run) -> dict[str, Any]:
        modules: dict[str, Any] = {}
        for chosen in run.chosen("reward"):
            try:
                modules[chosen.name] = self._outline(chosen)
            except GuidedCDError as error:
                self.left_out[f"reward {chosen.name}"] = str(error)
        return modules

    def _rewards(self, run: Run, graphs: bool) -> tuple[Any, int]:
        modules = self._reward_outlines(run)
        teacher = self._outline(run.teacher)
        beside = others(run, teacher, modules)
        try:
            cost = scoring(run, teacher, modules) if modules else None
        except Exception:
            for name in list(modules):  # find the rewards that fail
                try:
                    scoring(run, teacher, {name: modules[name]})
                except Exception as error:
                    self.left_out[f"reward {name}"] = f"it does not run on the meta device ({_first_line(error)})"
                    del modules[name]
            cost = scoring(run, teacher, modules) if modules else None
        if cost is None or not graphs:
            return cost, beside
        cost, reserved = replayed(run, teacher, modules, cost)
        return cost, beside + reserved

    def _once(self, key: Any, make: Any) -> Any:
        key = repr(key)  # options may be lists and dicts, which have no hash
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def _outline(self, chosen: Chosen) -> Any:
        """A component on the meta device, which the caller may change. Building one reads files, copying does not."""
        original = self._once(("outline", chosen.name, repr(chosen.config)), lambda: outline(chosen))
        try:
            return copy.deepcopy(original)
        except Exception:  # a plugin's object need not be one that can be copied
            return outline(chosen)

    def on(self, run: Run, fast: str) -> Machine:
        """The machine with the share that the teacher's denoiser reaches on the path `fast`."""
        blocks = self._once(("blocks", run.teacher.name), lambda: getattr(self._outline(run.teacher), "blocks", ()))
        return self.machine.with_layers(fast, transformer=bool(blocks))

    def _largest(self, run: Run, section: str, count: Callable[[Run], Any]) -> int:
        """The largest batch size that fits, at most `LARGEST_BATCH`; 0 if none does."""

        def peak(batch: int) -> float:
            changed = attrs.evolve(getattr(run, section), batch_size=batch)
            return float(count(attrs.evolve(run, **{section: changed})).peak)

        return largest_batch(peak, usable(self.machine), getattr(run, section).batch_size)


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
