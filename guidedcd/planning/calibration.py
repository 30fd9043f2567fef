"""The speed of this machine, measured with a pass of the run's teacher."""

from __future__ import annotations

import os
import time

import attrs
import torch

from guidedcd.acceleration.apply import accelerated
from guidedcd.config.run import Run
from guidedcd.devices import device as find_device
from guidedcd.models.teachers.contract import build_teacher
from guidedcd.planning.gpus import WITHIN, WITHIN_UNMEASURED, Machine
from guidedcd.planning.meter import Cost
from guidedcd.planning.preprocess_cost import ROWS

LIMIT = 5.0
"""Seconds of all passes; a pass of one sample that is predicted to take longer is not measured."""
PASSES = 5
"""Largest number of measured passes."""


def calibrated(machine: Machine, run: Run, counted: Cost) -> Machine:
    """The machine with the speed that a pass of the teacher reaches, and with its present slowdown by other work.

    Args:
        machine: A machine without a data sheet is measured, any other is returned unchanged.
        run: Its teacher is built.
        counted: The cost of a pass of `ROWS` times the batch size of preprocessing.
    """
    rows = ROWS * run.preprocess.batch_size
    predicted = machine.seconds(counted) / rows  # of one sample
    if machine.within != WITHIN_UNMEASURED or predicted > LIMIT:
        return machine
    try:
        fastest, mean = _passes(run, max(1, min(rows, int(LIMIT / PASSES / predicted))))
    except Exception:  # missing weights, a teacher that does not fit, a plugin's error: a plan does without the pass
        return machine
    operations = attrs.evolve(machine, launch=0.0).seconds(counted) / rows
    return attrs.evolve(
        machine,
        share=machine.share * operations / fastest,
        launch=0.0,  # it is part of the measured time
        within=WITHIN,
        slowdown=mean / fastest,
        source="a pass of the teacher, measured now",
    )


def _passes(run: Run, rows: int) -> tuple[float, float]:
    """Seconds per sample of a pass on an idle machine, and the mean of several passes now.

    The network has the precision of the run's preprocessing.
    """
    teacher = build_teacher(run.teacher, find_device(run.device))
    z = torch.zeros(rows, *teacher.geometry.latent_shape, device=teacher.device)
    t, text = torch.full((rows,), 500, device=teacher.device), teacher.null(rows)
    seconds: list[float] = []
    settings = run.preprocess
    with (
        torch.no_grad(),
        accelerated(
            teacher, fast="no", precision=settings.precision, quantize=settings.quantize, in_place=True
        ) as teacher,
    ):
        teacher.net(z, t, text)
        worked, began = time.process_time(), time.perf_counter()
        while len(seconds) < PASSES and time.perf_counter() - began < LIMIT:
            start = time.perf_counter()
            teacher.net(z, t, text).sum().item()
            seconds.append((time.perf_counter() - start) / rows)
        worked = time.process_time() - worked
    fastest = min(seconds)
    if teacher.device.type == "cpu":
        fastest = _undisturbed(fastest, worked / len(seconds) / rows)
    return fastest, sum(seconds) / len(seconds)


def _undisturbed(fastest: float, worked: float) -> float:
    """Seconds of a pass on an idle CPU, from those of the fastest pass and the mean CPU time of a pass.

    Threads that wait for each other, or for a container's quota of CPU time, look like threads that other work
    displaced. The result is therefore at most as short as the load average explains.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = min(torch.get_num_threads(), cpus)
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):  # unknown on this system
        load = 0.0
    return min(fastest, max(worked / threads, fastest / max(1.0, (load + threads) / cpus)))
