"""The optimisers: AdamW with float32 or 8-bit states."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from guidedcd.config.sections import Train
from guidedcd.errors import GuidedCDError


def build(parameters: Iterable[Tensor], settings: Train) -> torch.optim.Optimizer:
    """The optimiser for float32 parameters, all on one device.

    Raises:
        GuidedCDError: The package of the optimiser is not installed.
    """
    parameters = list(parameters)
    options: dict[str, Any] = {"lr": settings.optimizer.lr, "weight_decay": settings.optimizer.weight_decay}
    if settings.optimizer.name == "adamw-8bit":
        return _bitsandbytes().optim.AdamW8bit(parameters, **options)
    return torch.optim.AdamW(parameters, fused=parameters[0].device.type == "cuda", **options)


def check(settings: Train) -> None:
    """Check, before anything is computed, that the optimiser is installed and fits the other options.

    Raises:
        GuidedCDError: It is not, or does not.
    """
    if settings.optimizer.name != "adamw-8bit":
        return
    _bitsandbytes()
    if settings.parallel.mode == "fsdp":
        raise GuidedCDError(
            "--train.optimizer.name adamw-8bit keeps whole states in every process, which --train.parallel.mode fsdp "
            "does not. Use one or the other."
        )


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise GuidedCDError(
            f"--train.optimizer.name adamw-8bit needs the package bitsandbytes ({error}): pip install bitsandbytes, "
            "or use adamw."
        ) from error
    return bitsandbytes
