"""Runs and devices of the tests of plans."""

from __future__ import annotations

from typing import Any

from guidedcd.config.resolve import run_from_dict
from guidedcd.config.run import Run
from guidedcd.planning.gpus import GIB, Machine


def shipped_run(**sections: Any) -> Run:
    """A run of shipped components: sections as in run.json, the proving ground's teacher and data by default."""
    return run_from_dict({"teacher": {"shapes": {}}, "data": [{"shapes": {}}], **sections})


def gpu(**changes: Any) -> Machine:
    """A device with round figures."""
    figures = {"half": 1e12, "single": 1e11, "bandwidth": 1e9, "memory": 24.0 * GIB, "share": 0.5, "launch": 1e-6}
    return Machine(**{"name": "test GPU", "kind": "cuda", **figures, **changes})
