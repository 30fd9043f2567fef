"""A teacher made ready for many forward passes: in half precision, on faster paths, and given back as it was."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from guidedcd.acceleration.switch import speed_up
from guidedcd.config.sections import Preprocess, Train
from guidedcd.errors import GuidedCDError


@contextlib.contextmanager
def tuned(teacher: Any, settings: Preprocess, *, ours: bool = False) -> Iterator[Any]:
    """The teacher as `settings` want it for preprocessing; without options, on a CPU, the very same.

    Args:
        teacher: Loaded, on its device.
        settings: Its `precision` and `fast`.
        ours: Nobody else needs the teacher: its network may be rounded in place instead of on a copy.
    """
    network = teacher.network
    if settings.precision == "bf16" and next(network.parameters()).dtype != torch.bfloat16:
        teacher.fingerprint()  # of the weights as they were loaded
        network = network if ours else copy.deepcopy(network)
        teacher = _with(teacher, network.to(torch.bfloat16))
    compiled = compiled_as(settings, network)
    from guidedcd.acceleration.switch import is_fast, plain, speed_up

    if compiled is False or is_fast(network):
        yield teacher
        return
    speed_up(network, compile=compiled)
    before = torch.backends.cudnn.benchmark
    # Every convolution is tried in all ways at its first call, where results need not be the same from run to run.
    torch.backends.cudnn.benchmark = before or not torch.are_deterministic_algorithms_enabled()
    try:
        yield teacher
    finally:
        torch.backends.cudnn.benchmark = before
        plain(network)


def compiled_as(settings: Preprocess | Train, network: nn.Module) -> str | bool | None:
    """How faster paths compile: None not at all, as on a CPU; False where there are no faster paths."""
    if type(network).__name__ != "UNet3DConditionModel" or settings.fast == "no":
        return False
    on_gpu = next(network.parameters()).is_cuda
    if settings.fast == "auto":
        return None if on_gpu else False
    return settings.fast if on_gpu and settings.fast not in ("layers", "graphs") else None


def _with(teacher: Any, network: nn.Module) -> Any:
    """The teacher with another network; all else is shared."""
    other = copy.copy(teacher)
    if isinstance(other, nn.Module):  # whose attributes a shallow copy would share
        other._modules = dict(teacher._modules)
    other.network = network
    return other


CHOICES = ("auto", "no", "layers", "graphs", "blocks")
"""`layers`: exact layers; `graphs`: replayed as CUDA graphs as well; `blocks`: compiled; `auto`: `layers` on GPUs."""


def check(choice: str) -> None:
    """Refuse what is no choice.

    Raises:
        GuidedCDError: It lists the choices.
    """
    if choice not in CHOICES:
        raise GuidedCDError(f"--fast must be one of {', '.join(CHOICES)}, not '{choice}'.")


def quicken(student: Any, teacher: Any, choice: str = "auto") -> None:
    """Switch the networks of a student and its teacher in place, where they are 3D UNets, and the decoder.

    Args:
        student: Its `network` makes the videos.
        teacher: Its `network` is compared with; its `vae` decodes.
        choice: One of `CHOICES`.

    Raises:
        GuidedCDError: The choice is unknown.
    """
    check(choice)
    on_gpu = teacher.device.type == "cuda"
    if choice == "no" or (choice == "auto" and not on_gpu):
        return
    compiled = "blocks" if choice == "blocks" else None
    for network in (student.network, teacher.network):
        if type(network).__name__ == "UNet3DConditionModel":
            speed_up(network, compile=compiled, graphs=choice == "graphs")
    if type(getattr(teacher, "vae", None)).__name__ == "AutoencoderKL":
        speed_up(teacher.vae)
