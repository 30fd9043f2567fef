"""A small piece of a run, measured on this device and compared with its prediction.

The piece is a run of its own in a temporary folder, with fewer videos and steps.
"""

from __future__ import annotations

import contextlib
import gc
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import attrs
import torch

from guidedcd.acceleration.apply import accelerated
from guidedcd.acceleration.options import without_compilation
from guidedcd.config.run import Run
from guidedcd.config.structure import changed
from guidedcd.devices import blame_memory, device
from guidedcd.models.teachers.contract import build_teacher
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.planning.decode_cost import decode_errors, has_policies
from guidedcd.planning.estimate import Estimator, Stage
from guidedcd.planning.gpus import GIB
from guidedcd.planning.preprocess_cost import ROWS
from guidedcd.preprocessing.preprocess import preprocess
from guidedcd.preprocessing.store import LatentStore
from guidedcd.training.log import read_log
from guidedcd.training.trainer import Trainer

LIMIT = 60.0
"""Seconds of all measurements; one that is predicted to end later is left out."""
SHARE = 0.3
"""Share of the time for one batch of preprocessing, whose grid has fewer points where necessary."""
STEPS = 3
"""Training steps; the first one is not counted."""


def probe(run: Run, estimator: Estimator, limit: float = LIMIT) -> dict[str, Any]:
    """Measure one pass of the teacher, one batch of preprocessing and two training steps.

    Returns:
        "rows", each with what, predicted, measured (None with a reason why), unit and, for whole stages, the
        device-hours of the run that follow; "decode_errors" by policy, where the teacher has a choice; and "seconds",
        the duration of the probe.
    """
    with contextlib.redirect_stdout(io.StringIO()), blame_memory("the teacher"):
        teacher = build_teacher(run.teacher, device(run.device))
    began, rows = time.perf_counter(), _Rows(teacher.device)

    def left() -> float:
        return limit - (time.perf_counter() - began)

    small = _small(run)
    ratio = rows.seconds(*_pass(small, teacher, estimator), left())
    small = _coarser(small, estimator, SHARE * limit / max(ratio or 1.0, 0.1))
    errors: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "store")
        predicted = estimator.preprocess(small)
        videos, points = small.preprocess.videos, small.solver.steps
        what = f"preprocess, {videos} videos, {points} grid points"
        whole = estimator.preprocess(run)
        if rows.seconds(
            what,
            predicted.each_seconds * videos,
            lambda: preprocess(small, store_folder=store, teacher=teacher),
            left(),
            whole=whole,
            peak=predicted,
        ):
            if run.rewards and has_policies(teacher):
                errors = _decode_errors(run, teacher, LatentStore(store))
            size = sum(file.stat().st_size for file in store.rglob("shard-*"))
            rows.add("store, per video", predicted.disk_gb * 1e3 / videos, size / videos / 1e6, "MB")
            step = estimator.train(small)
            run_folder = Path(folder, "run")
            run_folder.mkdir()
            rows.seconds(
                f"{STEPS - 1} training steps",
                step.each_seconds * (STEPS - 1),
                lambda: _steps(small, run_folder, store, teacher),
                left() * (STEPS - 1) / STEPS,
                whole=estimator.train(run),
                peak=step,
            )
        else:
            rows.add("training", estimator.train(small).each_seconds, None, "s", "it needs a preprocessed batch")
    more = {"decode_errors": errors} if errors else {}
    return {"rows": rows.rows, **more, "seconds": time.perf_counter() - began}


def _decode_errors(run: Run, teacher: Teacher, store: LatentStore) -> dict[str, float]:
    """The errors of the ways to decode for rewards, on a clip of the store."""
    rewards = {chosen.name: chosen.outline() for chosen in run.chosen("reward")}
    return decode_errors(run, teacher, rewards, store[0].z0[None].to(teacher.device))


class _Rows:
    """The predictions and measurements so far."""

    def __init__(self, where: torch.device) -> None:
        self.rows: list[dict[str, Any]] = []
        self.where, self.ratio = where, 1.0

    def add(self, what: str, predicted: float, measured: float | None, unit: str, why: str = "", **more: Any) -> None:
        """Append a row."""
        self.rows.append({"what": what, "predicted": predicted, "measured": measured, "unit": unit, "why": why, **more})

    def seconds(
        self,
        what: str,
        predicted: float,
        work: Any,
        left: float,
        *,
        whole: Stage | None = None,
        peak: Stage | None = None,
    ) -> float | None:
        """Run and time `work` if it is predicted to end in time.

        Returns:
            Measured by predicted seconds, or None without a measurement. `work` may return the seconds that count.
        """
        expected = predicted * self.ratio
        if expected > left:
            self.add(what, predicted, None, "s", f"would take about {expected:.0f} s")
            return None
        _reset(self.where)
        began = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            own = work()
        _wait(self.where)
        measured = own if isinstance(own, float) else time.perf_counter() - began
        self.ratio = measured / predicted
        more: dict[str, Any] = {} if whole is None else {"device_hours": whole.device_hours * self.ratio}
        self.add(what, predicted, measured, "s", **more)
        if peak is not None and self.where.type == "cuda":
            self.add("  its peak", peak.peak_gib or 0.0, torch.cuda.max_memory_allocated(self.where) / GIB, "GiB")
        return self.ratio


def _small(run: Run) -> Run:
    """The run with one batch of videos, two draws of each, and three steps."""
    videos = min(run.preprocess.batch_size, run.preprocess.videos)
    few: dict[str, Any] = {
        "videos": videos,
        "shard_size": videos,
        "draws_per_video": min(2, run.preprocess.draws_per_video),
    }
    # Compiling takes minutes.
    fast = [without_compilation(settings.fast) for settings in (run.preprocess, run.train)]
    return attrs.evolve(
        run,
        preprocess=attrs.evolve(run.preprocess, fast=fast[0], **few),
        train=changed(
            run.train,
            steps=STEPS,
            log_every=1,
            tracker="none",
            fast=fast[1],
            checkpoint={"every": 10**9},
            validation={"every": None},
        ),
    )


def _coarser(run: Run, estimator: Estimator, seconds: float) -> Run:
    """The run with the number of grid points that preprocessing reaches in `seconds`, at least two."""
    while run.solver.steps > 2 and estimator.preprocess(run).each_seconds * run.preprocess.videos > seconds:
        run = attrs.evolve(run, solver=attrs.evolve(run.solver, steps=max(2, run.solver.steps * 2 // 3)))
    return run


def _pass(run: Run, teacher: Teacher, estimator: Estimator) -> tuple[str, float, Any]:
    """One pass of the teacher as in preprocessing: its name, predicted seconds, and the function that runs it."""
    rows = ROWS * run.preprocess.batch_size
    counted, where = estimator.teaching(run).forward, estimator.on(run, run.preprocess.fast)

    def work() -> float:
        settings = run.preprocess
        with (
            torch.no_grad(),
            accelerated(
                teacher, fast=settings.fast, precision=settings.precision, quantize=settings.quantize
            ) as fast_teacher,
        ):
            z = torch.zeros(rows, *teacher.geometry.latent_shape, device=teacher.device)
            t, text = torch.full((rows,), 500, device=teacher.device), teacher.null(rows)
            fast_teacher.net(z[:1], t[:1], {key: value[:1] for key, value in text.items()})
            if teacher.device.type != "cpu":
                fast_teacher.net(z, t, text)
            _wait(teacher.device)
            began = time.perf_counter()
            fast_teacher.net(z, t, text)
            _wait(teacher.device)
            return time.perf_counter() - began

    return f"one pass, {rows} samples", where.seconds(counted), work


class _Unsaved(Trainer):
    """A trainer that writes no student."""

    def write_student(self, target: Path) -> None:
        """Write nothing: only the time of the steps is of interest."""


def _steps(run: Run, folder: Path, store: Path, teacher: Teacher) -> float:
    """Seconds of all training steps but the first."""
    _Unsaved(run, folder, LatentStore(store), teacher).fit()
    lines = read_log(folder / "log.jsonl")
    return float(lines[-1]["seconds"] - lines[0]["seconds"])


def _wait(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def _reset(where: torch.device) -> None:
    gc.collect()
    if where.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(where)
