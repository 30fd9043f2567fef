"""Records of activations: forward pre-hooks compute what energies need while a network runs.

The rest of the forward pass after the last record (the tail) may be skipped, or run without gradient. What is recorded
is a `Probe`: `attention_probes` has that of attention over frames, `self_attention_probes` that of attention over space
and time together.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from guidedcd.errors import GuidedCDError, NeedError

TAILS = ("whole", "detached", "none")
"""How the tail of a forward pass runs."""


class Probe(Protocol):
    """One kind of record."""

    def layers(self, network: nn.Module, need: str) -> Mapping[str, nn.Module]:
        """The modules by name at which `need` is recorded.

        Raises:
            GuidedCDError: The network has none, or the need is of another kind.
        """

    def values(self, name: str, module: Any, args: tuple, kwargs: dict) -> Mapping[str, Tensor]:
        """What is recorded at a module with these inputs, by its name in the record; first dimension B."""


class _Hook:
    """A forward pre-hook that changes nothing and also takes tokens in the order of frames, see `takes_frames`."""

    takes_frames = True
    """Makes `guidedcd.acceleration.layers` keep its fast path and pass (B, F, P, C)."""

    def __init__(self, hook: Callable[[nn.Module, tuple, dict], None]) -> None:
        self.hook = hook

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Call the hook."""
        self.hook(module, args, kwargs)


class _Complete(Exception):
    """Ends the forward pass after the last record; `record` catches it."""


def layers_of(probe: Probe, network: nn.Module, need: str) -> Mapping[str, nn.Module]:
    """As `probe.layers`.

    Raises:
        NeedError: The network has none, or the need is of another kind.
    """
    try:
        return probe.layers(network, need)
    except GuidedCDError as error:
        raise NeedError(str(error), need=need) from error


@contextlib.contextmanager
def record(
    network: nn.Module, needs: Sequence[str], probe: Probe, *, tail: str = "whole"
) -> Iterator[dict[str, dict[str, Tensor]]]:
    """Record activations during the forward pass inside the block.

    Args:
        network: A denoiser.
        needs: What energies read, such as "temporal-attention:official".
        probe: How the network's activations are recorded.
        tail: After the last record the pass continues ("whole"), continues without gradient ("detached"), or ends
            together with the block ("none"). Without needs it always continues.

    Raises:
        ValueError: `tail` is unknown.
        NeedError: A need is unknown, or selects no layer.

    Yields:
        By need, what `probe.values` returned at each of its layers. Filled by the forward pass; with a whole tail a
        second pass overwrites.
    """
    if tail not in TAILS:
        raise ValueError(f"tail must be one of {', '.join(TAILS)}: {tail!r}")
    records: dict[str, dict[str, Tensor]] = {need: {} for need in needs}
    layers: dict[str, nn.Module] = {}
    needs_of: dict[str, list[str]] = {}
    for need in records:
        for name, module in layers_of(probe, network, need).items():
            layers[name] = module
            needs_of.setdefault(name, []).append(need)
    waiting, graded = set(layers), torch.is_grad_enabled()

    def hook(name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        values = probe.values(name, module, args, kwargs)
        for need in needs_of[name]:
            records[need].update(values)
        waiting.discard(name)
        if not waiting and tail == "none":
            raise _Complete
        if not waiting and tail == "detached":
            torch.set_grad_enabled(False)

    handles = []
    for name, module in layers.items():
        handles.append(module.register_forward_pre_hook(_Hook(functools.partial(hook, name)), with_kwargs=True))
    try:
        with contextlib.suppress(_Complete):
            yield records
    finally:
        if tail == "detached":
            torch.set_grad_enabled(graded)
        for handle in handles:
            handle.remove()
