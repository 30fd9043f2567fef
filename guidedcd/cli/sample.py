"""`guidedcd sample`: prompts to videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cyclopts import App

from guidedcd.cli.folders import existing
from guidedcd.plugins import Registry


def add(app: App, registry: Registry, flags_class: Any) -> None:
    """Add the command to `app`."""

    @app.command
    def sample(run: Path, /, *prompts: str) -> None:
        """Make videos with a trained student.

        Parameters
        ----------
        run
            The run's folder.
        prompts
            What to show, each prompt one argument.
        """
        folder = existing(run)
        from guidedcd.generate import run_sample

        run_sample(folder, list(prompts))
