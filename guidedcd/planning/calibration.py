"""The speed of this machine, measured with a pass of the run's teacher."""

from __future__ import annotations

import time

import attrs
import torch

from guidedcd.config.run import Run
from guidedcd.devices import device as find_device
from guidedcd.errors import GuidedCDError
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
    except GuidedCDError:  # weights that a plan does without
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

    On a CPU the first is the time for which its processors worked, if that is less than the time of the fastest pass.
    """
    teacher = run.teacher.build().to(find_device(run.device))
    z = torch.zeros(rows, *teacher.geometry.latent_shape, device=teacher.device)
    t, text = torch.full((rows,), 500, device=teacher.device), teacher.null(rows)
    seconds: list[float] = []
    with torch.no_grad():
        teacher.net(z, t, text)
        worked, began = time.process_time(), time.perf_counter()
        while len(seconds) < PASSES and time.perf_counter() - began < LIMIT:
            start = time.perf_counter()
            teacher.net(z, t, text).sum().item()
            seconds.append((time.perf_counter() - start) / rows)
        worked = time.process_time() - worked
    fastest = min(seconds)
    if teacher.device.type == "cpu":
        fastest = min(fastest, worked / len(seconds) / rows / torch.get_num_threads())
    return fastest, sum(seconds) / len(seconds)
