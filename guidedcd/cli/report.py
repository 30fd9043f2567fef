"""`guidedcd report`: write the report of a run again, or one page about several runs."""

from __future__ import annotations

from typing import Any

from cyclopts import App

from guidedcd.cli.arguments import existing
from guidedcd.cli.flag_types import PathArgument, PathFlag
from guidedcd.plugins.registry import Registry


def add(app: App, registry: Registry, flags_class: Any) -> None:
    """Add the command to `app`."""

    @app.command
    def report(run: PathArgument, /, *more: PathArgument, out: PathFlag = None) -> None:
        """Write a run's report: one HTML file with curves, scores and videos; several runs: one page about all of them.

        The page of several runs has the options in which they differ, their scores with paired differences from the
        first, and their curves in the same charts. It measures nothing: `guidedcd evaluate` does. Both pages can be
        read without a network.

        Parameters
        ----------
        run
            The run's folder.
        more
            Further runs to put beside it.
        out
            The HTML file; by default report.html in the run's folder, for several runs comparison.html in the current
            folder.
        """
        folders = [existing(one) for one in (run, *more)]
        from guidedcd.console import console

        if more:
            from guidedcd.evaluation.report.side_by_side import write_comparison

            console.print(f"report   {write_comparison(folders, out=out)}")
            return
        from guidedcd.evaluation.report.page import write_report

        console.print(f"report   {write_report(folders[0], out=out)}")
