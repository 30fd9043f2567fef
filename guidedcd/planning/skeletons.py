"""A run's teacher and rewards without their weights."""

from __future__ import annotations

import inspect
from typing import Any

from guidedcd.config.run import Chosen
from guidedcd.planning.meter import without_memory


def outline(chosen: Chosen) -> Any:
    """A component on the meta device.

    One whose target takes the argument `weights` is called with `weights=False` and opens no file; another is built as
    ever, and its memory is given back.
    """
    target = chosen.component().load()
    try:
        spare = "weights" in inspect.signature(target).parameters
    except (TypeError, ValueError):
        spare = False
    return without_memory(target(chosen.config, weights=False) if spare else chosen.build())
