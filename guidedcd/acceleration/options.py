"""The option `fast` of the commands: what each of its values means for a network, a device or a store.

`auto` is `layers` on GPUs and `no` elsewhere; `no` keeps stock networks; `layers` uses exact, faster layers; `graphs`
also replays CUDA graphs; `blocks` and `blocks-tuned` also compile, on GPUs only, and `blocks-graphs` does both.
"""

from __future__ import annotations

from collections.abc import Collection

import attrs
import torch
from torch import nn

from guidedcd.acceleration.blocks import repeated_blocks
from guidedcd.devices import FAST
from guidedcd.errors import GuidedCDError


@attrs.frozen
class Paths:
    """Which faster paths a network takes; the arguments of `speed_up`."""

    compile: str | None = None
    graphs: bool = False
    repeated: tuple[str, ...] = ()


def check(option: str) -> None:
    """Refuse an unknown value of `--fast`.

    Raises:
        GuidedCDError: It lists the choices.
    """
    if option not in FAST:
        raise GuidedCDError(f"--fast must be one of {', '.join(FAST)}, not '{option}'.")


def resolved(option: str, device_type: str) -> str:
    """The option with `auto` replaced by its meaning on a device of this type ("cuda", "cpu", "mps")."""
    if option != "auto":
        return option
    return "layers" if device_type == "cuda" else "no"


def choose(option: str, network: nn.Module, repeated: Collection[str] = ()) -> Paths | None:
    """The faster paths that the option selects for a network on its device; None keeps the stock paths.

    Args:
        option: A value of `fast`.
        network: A `UNet3DConditionModel`, a transformer of repeated blocks, or an `AutoencoderKL`, which is never
            compiled; others have no faster paths.
        repeated: Names of the classes of a transformer's blocks; by default those that diffusers names.
    """
    kind, device_type = type(network).__name__, next(network.parameters()).device.type
    option = resolved(option, device_type)
    repeated = repeated_blocks(network, repeated)
    if option == "no" or (kind not in ("UNet3DConditionModel", "AutoencoderKL") and not repeated):
        return None
    if kind == "AutoencoderKL":
        return Paths()
    return Paths(compile=compilation(option, device_type), graphs=replays(option), repeated=repeated)


def compiles(option: str) -> bool:
    """Whether blocks are compiled on a GPU."""
    return option.startswith("blocks")


def compilation(option: str, device_type: str) -> str | None:
    """The argument `compile` of `speed_up` on a device of this type; None compiles nothing."""
    return option.removesuffix("-graphs") if device_type == "cuda" and compiles(option) else None


def replays(option: str) -> bool:
    """Whether passes without gradient, and by default rewards with theirs, are replayed as CUDA graphs."""
    return option in ("graphs", "blocks-graphs")


def replays_rewards(option: str, rewards: bool | None) -> bool:
    """Whether rewards are replayed on a GPU, by the options `fast` and `replay_rewards` of training."""
    return replays(option) if rewards is None else rewards


def repeats_sizes(option: str, device: torch.device) -> bool:
    """Whether short batches are padded: for each new size layers are compiled and convolutions tried again."""
    option = resolved(option, device.type)
    return compiles(option) or (option != "no" and device.type == "cuda")


def without_compilation(option: str) -> str:
    """The value of `fast` with the same layers that neither compiles nor records, for a run of seconds."""
    return option if option in ("auto", "no") else "layers"
