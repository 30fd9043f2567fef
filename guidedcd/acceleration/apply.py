"""A teacher made ready for many forward passes: in half precision, on faster paths, and given back as it was."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import nn

from guidedcd.acceleration.switch import is_fast, plain, speed_up
from guidedcd.errors import GuidedCDError


@attrs.frozen
class Paths:
    """Which faster paths a network takes; the arguments of `speed_up`."""

    compile: str | None = None
    graphs: bool = False


def choose(option: str, network: nn.Module) -> Paths | None:
    """What the option `fast` of a command means for a network on its device; None: it keeps its stock paths.

    Args:
        option: "no"; "auto" (`layers` on GPUs, otherwise `no`); "layers": exact layers; "graphs": replayed as CUDA
            graphs as well; "blocks", "blocks-tuned": compiled, on GPUs only.
        network: Only a `UNet3DConditionModel` and an `AutoencoderKL` have faster paths; the latter is never compiled.
    """
    kind, on_gpu = type(network).__name__, next(network.parameters()).is_cuda
    if kind not in ("UNet3DConditionModel", "AutoencoderKL") or option == "no" or (option == "auto" and not on_gpu):
        return None
    if kind == "AutoencoderKL":
        return Paths()
    return Paths(compile=option if on_gpu and option.startswith("blocks") else None, graphs=option == "graphs")


def repeats_sizes(option: str, device: torch.device) -> bool:
    """Whether short passes are filled up: for each new size layers are compiled and convolutions tried again."""
    return option.startswith("blocks") or (option != "no" and device.type == "cuda")


@contextlib.contextmanager
def tuned(teacher: Any, *, fast: str, precision: str, ours: bool = False) -> Iterator[Any]:
    """The teacher made ready for many forward passes; without options, on a CPU, the very same.

    Args:
        teacher: Loaded, on its device.
        fast: See `choose`.
        precision: "bf16" rounds the network's weights; any other value keeps them.
        ours: Nobody else needs the teacher: its network may be rounded in place instead of on a copy.
    """
    network = teacher.network
    if precision == "bf16" and next(network.parameters()).dtype != torch.bfloat16:
        teacher.fingerprint()  # of the weights as they were loaded
        network = network if ours else copy.deepcopy(network)
        teacher = _with(teacher, network.to(torch.bfloat16))
    paths = choose(fast, network)
    if paths is None or is_fast(network):
        yield teacher
        return
    speed_up(network, compile=paths.compile, graphs=paths.graphs)
    before = torch.backends.cudnn.benchmark
    # Every convolution is tried in all ways at its first call, where results need not be the same from run to run.
    torch.backends.cudnn.benchmark = before or not torch.are_deterministic_algorithms_enabled()
    try:
        yield teacher
    finally:
        torch.backends.cudnn.benchmark = before
        plain(network)


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


def accelerate(student: Any, teacher: Any, choice: str = "auto") -> None:
    """Switch the networks of a student and its teacher in place, where they are 3D UNets, and the decoder.

    Args:
        student: Its `network` makes the videos.
        teacher: Its `network` is compared with; its `vae` decodes.
        choice: One of `CHOICES`.

    Raises:
        GuidedCDError: The choice is unknown.
    """
    check(choice)
    for network in (student.network, teacher.network, getattr(teacher, "vae", None)):
        paths = None if network is None else choose(choice, network)
        if paths is not None:
            speed_up(network, compile=paths.compile, graphs=paths.graphs)
