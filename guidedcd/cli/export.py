"""`guidedcd export`: writes a trained student in a format that other programs read."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App

from guidedcd.cli.command_line import starting
from guidedcd.cli.flag_types import WHOLE, PathArgument
from guidedcd.plugins.registry import Registry


def add(app: App, registry: Registry, flags_class: Any) -> None:
    """Add the command to `app`."""

    @app.command
    def export(
        run: PathArgument, out: PathArgument, /, *, format: str = "diffusers", rank: Annotated[int | None, WHOLE] = None
    ) -> None:
        """Write a trained student in another format, and test it in a fresh process.

        Parameters
        ----------
        run
            The run's folder, or a student's or checkpoint's inside it.
        out
            The folder to write.
        format
            diffusers (a folder with a pipeline file), t2v-turbo-v2 (that project's state dict), or lora (PEFT).
        rank
            For lora only: extract an adapter of this rank; by default the trained adapter, or rank 64.
        """
        starting("export   loading PyTorch and the student")
        from guidedcd.inference.export.export import export

        export(run, out, format=format, rank=rank)
