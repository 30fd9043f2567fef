"""`guidedcd evaluate`: measure a student against its teacher, on paired prompts and noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cyclopts import App

from guidedcd.cli.folders import existing
from guidedcd.plugins import Registry


def add(app: App, registry: Registry, flags_class: Any) -> None:
    """Add the command to `app`."""

    @app.command
    def evaluate(run: Path, /) -> None:
        """Measure a trained student against its teacher on the same prompts and initial noise.

        Parameters
        ----------
        run
            The run's folder.
        """
        folder = existing(run)
        from guidedcd.evaluate import run_evaluate

        run_evaluate(folder)
