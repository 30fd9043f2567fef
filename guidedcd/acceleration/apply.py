"""Teachers and students on faster paths: a teacher for the time of a block, a student and its teacher for good."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, Protocol, TypeVar

import attrs
import torch
from torch import nn

from guidedcd.acceleration import int8, options
from guidedcd.acceleration.autoencoders import (
    is_fast_autoencoder,
    restore_autoencoder,
    speed_up_autoencoder_of,
)
from guidedcd.acceleration.precision import cast, computing_dtype
from guidedcd.acceleration.switch import is_fast, restore, speed_up


class HasNetwork(Protocol):
    """A teacher, as far as faster paths are concerned."""

    network: nn.Module
    """The denoiser."""

    def fingerprint(self) -> str:
        """A digest of the weights as they were loaded."""


AnyTeacher = TypeVar("AnyTeacher", bound=HasNetwork)


@contextlib.contextmanager
def accelerated(
    teacher: AnyTeacher, *, fast: str, precision: str, quantize: str = "no", in_place: bool = False
) -> Iterator[AnyTeacher]:
    """Yield the teacher prepared for many forward passes; where the options change nothing, the same object.

    Args:
        teacher: Loaded, on its device.
        fast: See `guidedcd.acceleration.options`.
        precision: "bf16" rounds the network's weights; any other value keeps them.
        quantize: "int8" then rounds the weights of its layers to int8, see `guidedcd.acceleration.int8`.
        in_place: Round the teacher's own network instead of a copy; for callers that own the teacher.
    """
    network = teacher.network
    narrow = precision == "bf16" and computing_dtype(network) != torch.bfloat16
    if narrow or (quantize == "int8" and not int8.saved(network)):
        teacher.fingerprint()  # of the weights as they were loaded
        network = network if in_place else copy.deepcopy(network)
        if narrow:
            cast(network, torch.bfloat16)
        if quantize == "int8":
            int8.quantise(network)
        teacher = _with_network(teacher, network)
    paths = options.choose(fast, network, getattr(teacher, "blocks", ()))
    if paths is None or is_fast(network):
        yield teacher
        return
    before, autoencoder = torch.backends.cudnn.benchmark, getattr(teacher, "vae", None)
    was_fast = is_fast_autoencoder(autoencoder)
    # The benchmark tries all algorithms at a convolution's first call; results may then differ from run to run.
    torch.backends.cudnn.benchmark = before or not torch.are_deterministic_algorithms_enabled()
    try:
        speed_up(network, **attrs.asdict(paths))
        if not was_fast:
            speed_up_autoencoder_of(teacher, fast)
        yield teacher
    finally:
        torch.backends.cudnn.benchmark = before
        restore(network)
        if isinstance(autoencoder, nn.Module) and not was_fast:
            restore_autoencoder(autoencoder)


def _with_network(teacher: AnyTeacher, network: nn.Module) -> AnyTeacher:
    """A copy of the teacher with another network; everything else is shared."""
    other = copy.copy(teacher)
    if isinstance(other, nn.Module):  # a shallow copy shares the dictionary of submodules
        other._modules = dict(other._modules)
    other.network = network
    return other


def accelerate(student: Any, teacher: HasNetwork, option: str = "auto") -> None:
    """Switch the networks of a student and its teacher, and the decoder, to faster paths, where there are some.

    Args:
        student: Its `network` predicts the videos; changed in place.
        teacher: Its `network`, and its `vae`, which decodes; changed in place.
        option: One of `guidedcd.devices.FAST`.

    Raises:
        GuidedCDError: The option is unknown.
    """
    options.check(option)
    repeated = getattr(teacher, "blocks", ())
    for network in (student.network, teacher.network, getattr(teacher, "vae", None)):
        if network is not None and (paths := options.choose(option, network, repeated)) is not None:
            speed_up(network, **attrs.asdict(paths))
    speed_up_autoencoder_of(teacher, option)
