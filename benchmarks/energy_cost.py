"""A training step of a profile with and without energies, in turn in one process: what an energy of the output costs.

    python benchmarks/energy_cost.py x0-motion                        # the proving ground, on this machine
    python benchmarks/energy_cost.py dynamics,saturation --repeats 100

Steps without and with an energy follow each other, so that a slow minute of the host touches both. `times` is the mean
ratio of such pairs with a 95 % interval; the highest and the lowest twentieth of the ratios are left out. There are no
rewards, whose time would hide that of the energy.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import harness  # first: it finds guidedcd where that is not installed
import torch
from harness import Recorder, Timing

from guidedcd.acceleration.garbage import settled
from guidedcd.config.run import Run
from guidedcd.models.teachers.contract import build_teacher
from guidedcd.preprocessing.bucket_stores import open_stores, preprocess_all
from guidedcd.proving.intervals import over_seeds
from guidedcd.training.step import TrainStep
from guidedcd.training.trainer import Trainer

VIDEOS, DRAWS = 8, 4
"""Size of the store that the steps read."""


def step_of(profile: str, energies: Sequence[str], device: str, folder: Path) -> TrainStep:
    """The trainer's own step of a run without rewards, whose `energies` have the relative strength 0.3."""
    run = Run.from_profile(
        profile,
        energies={name: {"relative": 0.3} for name in energies},
        rewards=[],
        preprocess={"videos": VIDEOS, "draws_per_video": DRAWS},
        device=device,
    )
    teacher = build_teacher(run.teacher, torch.device(device))
    folders = preprocess_all(run, store_folder=folder / "store", teacher=teacher, fill_parts=False, accept=None)
    (folder / "run").mkdir()
    return Trainer(run, folder / "run", open_stores(run, folders), teacher).step


def time_pairs(steps: dict[str, TrainStep], device: str, pairs: int, warm_up: int) -> dict[str, Timing]:
    """The time of a step by setting; the settings follow each other in each pair."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    with settled():
        for number in range(1, warm_up + pairs + 1):
            for name, step in steps.items():
                harness.synchronize(device)
                start = time.perf_counter()
                step(number)
                harness.synchronize(device)
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(values[warm_up:]), values[0]) for name, values in seconds.items()}


def ratio(seconds: Sequence[float], without: Sequence[float]) -> dict[str, float]:
    """The mean ratio of pairs and its 95 % interval, without the highest and the lowest twentieth."""
    ratios = sorted(a / b for a, b in zip(seconds, without, strict=True))
    cut = len(ratios) // 20
    estimate = over_seeds(ratios[cut : len(ratios) - cut])
    return {"times": estimate.mean, "times_low": estimate.low, "times_high": estimate.high}


def main(arguments: list[str] | None = None) -> None:
    """Measure the settings, and print a row for each."""
    parser = harness.parser(__doc__, budget=600, repeats=40, warm_up=3)
    parser.add_argument("energies", help="names, joined by commas; each is measured alone")
    parser.add_argument("--profile", default="shapes")
    options = parser.parse_args(arguments)
    recorder = Recorder(options, "energy_cost")
    names = options.energies.split(",")
    with tempfile.TemporaryDirectory() as folder:
        steps = {}
        for name, chosen in {"without": [], **{name: [name] for name in names}}.items():
            (Path(folder) / name).mkdir()
            steps[name] = step_of(options.profile, chosen, options.device, Path(folder) / name)
        timings = time_pairs(steps, options.device, options.repeats, options.warm_up)
    for name, timing in timings.items():
        times = {} if name == "without" else ratio(timing.seconds, timings["without"].seconds)
        recorder.add(name, timing.values() | times)


if __name__ == "__main__":
    main()
