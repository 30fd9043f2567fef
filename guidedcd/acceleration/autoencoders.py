"""Autoencoders of videos on faster paths: channels-last convolutions, norms that are compiled with their activations.

The family of a teacher names its norms, and may have faster forward methods for other layers.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from guidedcd.acceleration import options
from guidedcd.acceleration.activation_checkpointing import Activated, unless_activated
from guidedcd.acceleration.switch import MODES, compiled, set_layout

LayerPaths = Mapping[str, Callable[..., Any]]
"""By class of a layer, a forward method with the same values."""
_SLOT = "_guidedcd_fast_autoencoder"
"""Attribute of a fast autoencoder, and of each of its layers with another forward method."""


def speed_up_autoencoder(
    autoencoder: nn.Module,
    *,
    compile: str | None = None,
    norms: Activated | None = None,
    paths: LayerPaths | None = None,
) -> None:
    """Switch an autoencoder of videos to the fast paths, in place; equal up to rounding.

    Convolution weights become channels-last, for which GPUs have their fastest kernels, and activations follow them.

    Args:
        autoencoder: Any autoencoder of diffusers with convolutions over time.
        compile: A key of `switch.MODES`: compiles each norm with the activation after it, which takes about a second
            for each of its sizes. None compiles nothing.
        norms: See `Activated`.
        paths: Faster forward methods of other layers.
    """
    restore_autoencoder(autoencoder)
    setattr(autoencoder, _SLOT, True)
    _set_layouts(autoencoder, torch.channels_last, torch.channels_last_3d)
    mode = MODES[compile]
    for module in list(autoencoder.modules()):
        if path := (paths or {}).get(type(module).__name__):
            _switch(module, path)
        names, act = (norms or {}).get(type(module).__name__, ((), ""))
        if mode is None or not names:
            continue
        activation = getattr(module, act)
        for name in names:
            _switch(getattr(module, name), _Activated(activation, mode).forward)
        if not hasattr(activation, _SLOT):  # it may serve several norms
            _switch(activation, _unless_activated)


def restore_autoencoder(autoencoder: nn.Module) -> None:
    """Undo `speed_up_autoencoder` in place; another autoencoder stays unchanged."""
    if not hasattr(autoencoder, _SLOT):
        return
    _set_layouts(autoencoder, torch.contiguous_format, torch.contiguous_format)
    for module in autoencoder.modules():
        if _SLOT in vars(module):
            delattr(module, _SLOT)
            vars(module).pop("forward", None)


def speed_up_autoencoder_of(teacher: Any, option: str) -> nn.Module | None:
    """Switch a teacher's autoencoder to what `--fast` selects, and return it; None if it has no faster paths there.

    Args:
        teacher: May have `vae`, `decoder_norms` and `autoencoder_paths`; see `VideoDecoding`.
        option: A value of `fast`.
    """
    autoencoder = getattr(teacher, "vae", None)
    if not isinstance(autoencoder, nn.Module) or not any(isinstance(m, nn.Conv3d) for m in autoencoder.modules()):
        return None
    device_type = _device_type(autoencoder)
    option = options.resolved(option, device_type)
    if option == "no" or device_type != "cuda":
        return None
    speed_up_autoencoder(
        autoencoder,
        compile=options.compilation(option, device_type),
        norms=getattr(teacher, "decoder_norms", None),
        paths=getattr(teacher, "autoencoder_paths", None),
    )
    return autoencoder


def is_fast_autoencoder(autoencoder: Any) -> bool:
    """Whether `speed_up_autoencoder` has switched it."""
    return hasattr(autoencoder, _SLOT)


def _device_type(autoencoder: nn.Module) -> str:
    return next(autoencoder.parameters()).device.type


class _Activated:
    """A norm's forward method: the norm and the activation after it, compiled together."""

    def __init__(self, activation: nn.Module, mode: str) -> None:
        self.activation, self.mode = activation, mode

    def forward(self, norm: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = compiled(_activated, self.mode)(norm, self.activation, x)
        y.is_activated = True  # type: ignore[attr-defined]  # read by `unless_activated`
        return y


def _activated(norm: nn.Module, activation: nn.Module, x: Tensor) -> Tensor:
    return type(activation).forward(activation, type(norm).forward(norm, x))


def _unless_activated(activation: nn.Module, x: Tensor) -> Tensor:
    return unless_activated(types.MethodType(type(activation).forward, activation))(x)


def _switch(module: nn.Module, forward: Callable[..., Any]) -> None:
    setattr(module, _SLOT, True)
    module.forward = types.MethodType(forward, module)


def _set_layouts(autoencoder: nn.Module, images: torch.memory_format, videos: torch.memory_format) -> None:
    for module in autoencoder.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            set_layout(module, videos if isinstance(module, nn.Conv3d) else images)
