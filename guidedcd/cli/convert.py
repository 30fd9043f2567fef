"""`guidedcd convert`: a published checkpoint to a diffusers folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App

from guidedcd.cli.number_types import NUMBER
from guidedcd.errors import GuidedCDError, suggest
from guidedcd.plugins.registry import Registry

KINDS = ("videocrafter2",)


def add(app: App, registry: Registry, flags_class: Any) -> None:
    """Add the command to `app`."""

    @app.command
    def convert(
        kind: str,
        file: Path,
        out: Path,
        /,
        *,
        fps: Annotated[float, NUMBER] = 8,
        arch: Path | None = None,
        dtype: str = "float32",
    ) -> None:
        """Write a published checkpoint as a folder that diffusers reads, and test that it does.

        Parameters
        ----------
        kind
            What the file is: videocrafter2.
        file
            The file as published (model.ckpt), or its tensors as safetensors.
        out
            The folder to make.
        fps
            Frames per second that the network is told; folded into its weights.
        arch
            JSON or YAML with the architecture, for files of another size.
        dtype
            float32, float16 or bfloat16.
        """
        if kind not in KINDS:
            raise GuidedCDError(f"cannot convert '{kind}'.{suggest(kind, KINDS)} Known: {', '.join(KINDS)}.")
        from guidedcd.inference.export.convert import convert_videocrafter2

        convert_videocrafter2(file, out, fps=fps, arch=arch, dtype=dtype)
