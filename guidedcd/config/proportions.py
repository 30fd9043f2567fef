"""Options of a profile that count training steps, in a run with fewer steps. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from guidedcd.config.option_types import flag
from guidedcd.config.run import Run
from guidedcd.config.sources import profiles, read_profile
from guidedcd.config.structure import Options, Value
from guidedcd.errors import written


def unscaled(run: Run) -> str:
    """A sentence about options that the run has from its profile, which are made for more steps; "" without any."""
    if run.profile not in profiles():
        return ""
    options = dict(_flat(read_profile(run.profile).sections.get("train", {})))
    steps = options.get("steps", 0)
    if run.train.steps >= steps:
        return ""
    settings = {
        "guided_steps": run.train.guided_steps,
        "lr_schedule.cooldown": run.train.lr_schedule.cooldown,
    }
    kept = {name: value for name, value in settings.items() if value and value == options.get(name)}
    flags = [
        f"--train.{'.'.join(map(flag, name.split('.')))} {max(1, round(value * run.train.steps / steps))}"
        for name, value in kept.items()
    ]
    if not kept:
        return ""
    return (
        f"profile {run.profile} has {', '.join(f'train.{name} {value}' for name, value in kept.items())} for {steps} "
        f"steps, and this run has {run.train.steps}. "
        f"In proportion: {written(' '.join(flags))}"
    )


def _flat(options: Options, path: str = "") -> Iterator[tuple[str, Any]]:
    """The options of a section with those of its groups, by path."""
    for name, value in options.items():
        if isinstance(value, Value):
            yield path + name, value.value
        else:
            yield from _flat(value, f"{path}{name}.")
