"""Writing modules and text files of an export."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from guidedcd.errors import GuidedCDError


def free(out: Path) -> None:
    """Refuse a folder that is there already.

    Raises:
        GuidedCDError: It is, and is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise GuidedCDError(f"{out} exists already; choose another folder, or delete it")


def save_module(module: nn.Module, folder: Path) -> None:
    """Write a diffusers model's configuration and weights."""
    from diffusers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        module.save_pretrained(folder, safe_serialization=True)
    finally:
        if shown:
            logging.enable_progress_bar()
    readable(folder)


def save_text(model: nn.Module, folder: Path) -> None:
    """Write a `CLIPTextModel` under the names that every version of transformers reads."""
    folder.mkdir()
    model.config.architectures = ["CLIPTextModel"]
    model.config.save_pretrained(folder)
    prefix = "text_model."
    state = {prefix + key.removeprefix(prefix): value.contiguous() for key, value in model.state_dict().items()}
    state = {key: value for key, value in state.items() if not key.endswith("position_ids")}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    readable(folder)


def readable(folder: Path) -> None:
    """Give files the permissions of any new file; safetensors makes them private."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.iterdir():
        path.chmod(0o666 & ~mask)
