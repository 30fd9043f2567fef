"""FlashAttention from a package of its own, which PyTorch uses in place of its own one while it is active."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch.nn import attention
from torch.nn import functional as nnf
from torch.nn.attention import SDPBackend, sdpa_kernel

from guidedcd.errors import GuidedCDError

PAGE = "docs/how-to/speed.md"
"""The page that names versions that fit."""


class Options(Protocol):
    """The options of a stage that computes attention: `train` or `preprocess`."""

    @property
    def flash_attention(self) -> str | None:
        """Name of the implementation, or None for PyTorch's own."""

    @property
    def fast(self) -> str:
        """Faster paths of the networks."""


def active() -> str | None:
    """The implementation that PyTorch uses in place of its own, such as "FA4"; None is its own."""
    name: str | None = getattr(attention, "current_flash_attention_impl", lambda: None)()
    return name


@contextlib.contextmanager
def flash_attention(options: Options, device: torch.device) -> Iterator[None]:
    """Inside, the FlashAttention of a stage's options is active; see `activate`."""
    before = active()
    activate(options, device)
    try:
        yield
    finally:
        if active() != before:
            _restore()


def activate(options: Options, device: torch.device) -> None:
    """Let the FlashAttention of a stage's options, if they name one, take part in the choice of kernels.

    Args:
        options: `flash_attention` is a name of `torch.nn.attention.list_flash_attention_impls`.
        device: Where attention is computed.

    Raises:
        GuidedCDError: The device is no GPU, nothing compares kernels, PyTorch is too old, or the package is missing or
            does not fit PyTorch.
    """
    name = options.flash_attention
    if name is None or active() == name:
        return
    option = f"the option flash-attention {name}"
    if device.type != "cuda":
        raise GuidedCDError(f"{option} needs an NVIDIA GPU; leave it out on '{device.type}'.")
    if options.fast == "no" or torch.are_deterministic_algorithms_enabled():
        raise GuidedCDError(f"{option} needs the option fast, and no deterministic algorithms; use fast blocks.")
    calls = ("activate", "restore")
    if not all(hasattr(attention, f"{call}_flash_attention_impl") for call in calls):
        raise GuidedCDError(f"{option} needs PyTorch 2.11 or newer; this is {torch.__version__}.")
    try:
        attention.activate_flash_attention_impl(name)
        _try(device)
    except Exception as error:  # of the package or of its compiler, whose classes differ
        if active() is not None:
            _restore()
        what = str(error) or type(error).__name__
        raise GuidedCDError(
            f"{option} does not work with PyTorch {torch.__version__} here ({what}). Install a version of its package "
            f"that fits: see {PAGE}."
        ) from error


def _restore() -> None:
    attention.restore_flash_attention_impl()


def _try(device: torch.device) -> None:
    """Compute one attention with its gradient.

    Raises:
        ValueError: A value is wrong.
        Exception: Whatever the package raises.
    """
    q = torch.ones(1, 1, 128, 64, dtype=torch.bfloat16, device=device, requires_grad=True)
    with torch.enable_grad(), sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        output = nnf.scaled_dot_product_attention(q, q, q)
        gradients: tuple[Any, ...] = torch.autograd.grad(output, q, torch.ones_like(output))
    if not bool((output == 1).all() and gradients[0].isfinite().all()):
        raise ValueError("its values are wrong")
