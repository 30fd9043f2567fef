"""Activation checkpointing: which activations are recomputed in the backward pass, which trades time for memory.

`recomputing` serves gradients with respect to the input of a frozen UNet. Its weights need no gradient, so a
convolution need not save its input; norms and activations are cheap to recompute; wide hidden layers and chains of
small convolutions free much memory for little time. `light_gradients` does the same in other frozen networks, such as
decoders of videos. `checkpoint_layers` serves training. Values stay the same.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch._functorch import config as functorch
from torch.utils.checkpoint import checkpoint

from guidedcd.acceleration.blocks import RECOMPUTE, drops, recomputed
from guidedcd.acceleration.convolutions import FrozenConvolution
from guidedcd.acceleration.switch import SLOT

CHOICES = ("nothing", "cheap", "most")


_BUDGET = {"cheap": 0.3, "most": 0.1}
"""The share of their usual activations that compiled layers may save."""


_TEMPORAL = ("TransformerTemporalModel", "AnimateDiffTransformer3D")


@contextlib.contextmanager
def recomputing(
    network: nn.Module,
    what: str,
    temporal: Collection[nn.Module] = (),
    keep: Collection[nn.Module] = (),
    blocks: Collection[str] = (),
) -> Iterator[None]:
    """Save fewer activations in the forward passes inside the block; gradients must be computed inside it, too.

    Args:
        network: A diffusers UNet or transformer with frozen weights, stock or fast.
        what: "nothing"; "cheap": feed-forwards, temporal and cross attention, norms and activations, which takes a
            third of the memory and a third of a forward pass more time; "most": temporal convolutions too, and whole
            `blocks`.
        temporal: The network's temporal self-attentions, each recomputed as a whole.
        keep: Modules that are recorded; a module that contains one of them is not recomputed as a whole.
        blocks: Names of the classes of a transformer's repeated blocks.

    Raises:
        ValueError: `what` is none of these.
    """
    if what not in CHOICES:
        raise ValueError(f"recompute must be one of {', '.join(CHOICES)}: {what!r}")
    if what == "nothing":
        yield
        return
    before: list[tuple[nn.Module, Any]] = []

    def change(module: nn.Module, forward: Callable[..., Any]) -> None:
        before.append((module, vars(module).get("forward")))
        module.forward = forward

    for module in _wholes(network, what, set(temporal), set(keep), blocks):
        change(module, _again(module.forward))
    for module in network.modules():
        if "forward" in vars(module):  # a faster path, or above
            continue
        if isinstance(module, nn.Conv2d | nn.Conv3d) and type(module) in (nn.Conv2d, nn.Conv3d) and _is_frozen(module):
            change(module, _frozen(module))
        elif type(module) is ResnetBlock2D and module.time_embedding_norm == "default":
            block: ResnetBlock2D = module
            act = block.nonlinearity
            for norm in (block.norm1, block.norm2):
                change(norm, _activated(norm.forward, act.forward))
            change(act, unless_activated(act.forward))
    try:
        with functorch.patch(activation_memory_budget=_BUDGET[what]):
            yield
    finally:
        for module, forward in reversed(before):
            del module.forward
            if forward is not None:
                module.forward = forward


Activated = Mapping[str, tuple[Sequence[str], str]]
"""By class of module, the names of its norms and the name of the activation that follows each of them."""


@contextlib.contextmanager
def light_gradients(network: nn.Module, activated: Activated, whole: Collection[str] = ()) -> Iterator[None]:
    """Save fewer activations for the gradient of a frozen network's input; the backward pass may come later.

    Convolutions save no input, and norms are computed again together with the activations that follow them. Norms on a
    faster path stay as they are: compiled ones save their input alone.

    Args:
        network: Its frozen convolutions of any class are changed inside the block.
        activated: Its norms that are followed by an activation at once.
        whole: Names of classes of layers that are recomputed as a whole: norms without an activation, or blocks.
    """
    before: list[tuple[nn.Module, str]] = []

    def change(module: nn.Module, name: str, function: Callable[..., Any]) -> None:
        if name not in vars(module):  # an activation may serve several norms, and a faster path stays
            before.append((module, name))
            setattr(module, name, function)

    for module in network.modules():
        kind = type(module).__name__
        if kind in whole:
            rest = {name for name in whole if name != kind}
            change(module, "forward", _again(_lightly(module, module.forward, activated, rest), draws=True))
        if isinstance(module, nn.Conv2d | nn.Conv3d) and _is_frozen(module):
            change(module, "_conv_forward", _frozen_operation(module))
        norms, act = activated.get(kind, ((), ""))
        if norms:
            activation = getattr(module, act)
            for name in norms:
                norm = getattr(module, name)
                change(norm, "forward", _activated(norm.forward, type(activation).forward.__get__(activation)))
            change(activation, "forward", unless_activated(activation.forward))
    try:
        yield
    finally:
        for module, name in before:
            delattr(module, name)


def _lightly(
    module: nn.Module, forward: Callable[..., Any], activated: Activated, whole: Collection[str]
) -> Callable[..., Any]:
    """The forward pass of a layer that saves as little when it is computed again, after the block has ended."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with light_gradients(module, activated, whole):
            return forward(*args, **kwargs)

    return run


def _frozen_operation(module: nn.Conv2d | nn.Conv3d) -> Callable[..., Tensor]:
    operation = module._conv_forward
    how = (module.stride, module.padding, module.dilation, module.groups)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return FrozenConvolution.apply(x, weight, bias, how) if _graded(x) else operation(x, weight, bias)

    return run


def _wholes(
    network: nn.Module, what: str, temporal: set[nn.Module], recorded: set[nn.Module], blocks: Collection[str]
) -> Iterator[nn.Module]:
    """The outermost modules that are recomputed as a whole; compiled layers recompute by themselves."""
    inside: set[nn.Module] = set()
    for name, module in network.named_modules():
        if module in inside:
            continue
        kind, below = type(module).__name__, set(module.modules())
        fast = vars(module).get(SLOT)
        cross = name.endswith(".attn2") and module not in temporal
        if fast is not None and fast.compile is not None and not below & recorded:
            inside |= below
        elif kind in blocks and what == "most" and not below & recorded:
            inside |= below
            yield module
        elif kind == "TemporalConvLayer" and what == "cheap":
            inside |= below  # norms and activations are recomputed, convolutions are not; fast ones do so anyway
            if fast is None:
                yield from (child for child in module.children() if isinstance(child, nn.Sequential))
        elif (
            (kind in _TEMPORAL and not below & recorded)
            or cross
            or module in temporal
            or kind in ("FeedForward", "TemporalConvLayer")
            or (kind == "ResnetBlock2D" and fast is not None and what == "most")
        ):
            inside |= below
            yield module


def _graded(*values: Any) -> bool:
    return torch.is_grad_enabled() and any(isinstance(v, Tensor) and v.requires_grad for v in values)


def _again(forward: Callable[..., Any], draws: bool = False) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not _graded(*args, *kwargs.values()):
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=draws, **kwargs)

    return run


def _activated(norm: Callable[[Tensor], Tensor], act: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A norm with the activation that follows it, recomputed together."""

    def both(x: Tensor) -> Tensor:
        return act(norm(x))

    def run(x: Tensor) -> Tensor:
        if not _graded(x):
            return norm(x)
        y = checkpoint(both, x, use_reentrant=False, preserve_rng_state=False)
        y.is_activated = True  # type: ignore[attr-defined]  # read by `unless_activated`
        return y

    return run


def unless_activated(act: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """An activation, which leaves a tensor unchanged that the norm before it has activated."""
    return lambda x: x if getattr(x, "is_activated", False) else act(x)


def _is_frozen(module: nn.Conv2d | nn.Conv3d) -> bool:
    standard = module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return standard and not any(parameter.requires_grad for parameter in module.parameters())


def _frozen(module: nn.Conv2d | nn.Conv3d) -> Callable[[Tensor], Tensor]:
    forward = module.forward
    how = (module.stride, module.padding, module.dilation, module.groups)

    def run(x: Tensor) -> Tensor:
        return FrozenConvolution.apply(x, module.weight, module.bias, how) if _graded(x) else forward(x)

    return run


RECOMPUTED = {
    "temporal": ("TemporalConvLayer", "TransformerTemporalModel"),
    "most": ("TemporalConvLayer", "TransformerTemporalModel", "Transformer2DModel"),
    "all": ("TemporalConvLayer", "TransformerTemporalModel", "Transformer2DModel", "ResnetBlock2D"),
}
"""Classes of layers by how much is recomputed. Temporal layers free most memory per second, residual blocks least."""


def checkpoint_layers(network: nn.Module, layers: str = "all", blocks: Collection[str] = ()) -> None:
    """Recompute the activations of each layer of a network, stock or fast, in the backward pass.

    Args:
        network: Changed in place.
        layers: A key of `RECOMPUTED`, whose classes are those of a UNet.
        blocks: Names of the classes of another network's repeated blocks. "all" recomputes all of a block, the other
            keys all but its fused attention.
    """
    names = tuple(blocks) or RECOMPUTED[layers]
    keeps = bool(blocks) and layers != "all"
    for module in network.modules():
        wrapped = isinstance(vars(module).get("forward"), functools.partial)
        if type(module).__name__ not in names or wrapped:
            continue
        if blocks and SLOT in vars(module):  # compiled together with what it recomputes
            setattr(module, RECOMPUTE, keeps)
        else:
            module.forward = functools.partial(_checkpointed, module, module.forward, keeps)


def _checkpointed(module: nn.Module, forward: Any, keeps: bool, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return recomputed(forward, keeps, drops(module.modules()))(*args, **kwargs)
