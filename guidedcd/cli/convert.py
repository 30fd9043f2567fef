"""`guidedcd convert`: writes a published checkpoint as a diffusers folder."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App

from guidedcd.cli.flag_types import NUMBER, PathArgument, PathFlag
from guidedcd.plugins.registry import Registry


def add(app: App, registry: Registry, flags_class: Any) -> None:
    """Add the command to `app`."""

    @app.command
    def convert(
        kind: str,
        file: PathArgument,
        out: PathArgument,
        /,
        *,
        fps: Annotated[float, NUMBER] = 8,
        arch: PathFlag = None,
        dtype: str = "float32",
    ) -> None:
        """Write a published checkpoint as a folder that diffusers reads, and test it in a fresh process.

        Parameters
        ----------
        kind
            The kind of checkpoint: videocrafter2.
        file
            The file as published (model.ckpt), or its tensors as safetensors.
        out
            The folder to write.
        fps
            Frames per second, an input of the network that is folded into its weights.
        arch
            JSON or YAML with the architecture, for files of another size.
        dtype
            float32, float16 or bfloat16.
        """
        from guidedcd.inference.export import convert as conversion

        conversion.convert(kind, file, out, fps=fps, arch=arch, dtype=dtype)
