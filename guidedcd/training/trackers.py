"""Experiment trackers in addition to log.jsonl: TensorBoard and Weights & Biases, through accelerate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import filter_trackers, get_available_trackers

from guidedcd.config.run import Run
from guidedcd.errors import GuidedCDError


def check(name: str) -> None:
    """Check, before anything is computed, that a tracker is installed.

    Raises:
        GuidedCDError: Its package is missing.
    """
    if name != "none" and name not in {str(getattr(one, "value", one)) for one in get_available_trackers()}:
        raise GuidedCDError(f"--train.tracker {name} needs a package that is missing: pip install {name}, or use none.")


@contextmanager
def tracked(accelerator: Accelerator, run: Run, folder: Path) -> Iterator[None]:
    """Inside this context, `accelerator.log` writes to the run's tracker, if it has one."""
    name = run.train.tracker
    if name == "none":
        yield
        return
    check(name)
    accelerator.project_configuration.set_directories(str(folder))
    accelerator.log_with = filter_trackers(name, str(folder))
    options = {"wandb": {"name": run.name, "id": folder.name, "resume": "allow", "dir": str(folder)}}
    accelerator.init_trackers("guidedcd", config=dict(_flat(run.to_dict())), init_kwargs=options)
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
        accelerator.trackers = []


def _flat(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Nested options with joined keys: ("train.optimizer.lr", 1e-4)."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, values if isinstance(values, bool | int | float | str | None) else str(values)
