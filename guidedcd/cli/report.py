"""`guidedcd report`: write the report of a run again."""

from __future__ import annotations

from typing import Any

from cyclopts import App

from guidedcd.cli.arguments import existing
from guidedcd.cli.flag_types import PathArgument, PathFlag
from guidedcd.plugins.registry import Registry


def add(app: App, registry: Registry, flags_class: Any) -> None:
    """Add the command to `app`."""

    @app.command
    def report(run: PathArgument, /, *, out: PathFlag = None) -> None:
        """Write a run's report: one HTML file with curves, scores and videos, readable without a network.

        Parameters
        ----------
        run
            The run's folder.
        out
            The HTML file; by default report.html in the run's folder.
        """
        folder = existing(run)
        from guidedcd.console import console
        from guidedcd.evaluation.report.page import write_report

        console.print(f"report   {write_report(folder, out=out)}")
