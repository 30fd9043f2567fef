"""Repeated blocks of transformers: compiled once for all of them, with the fastest attention kernel of their size.

The blocks are stock modules of any family. A compiler fuses their norms, modulations, rotations and residuals better
than our own kernels would, so that nothing here depends on what a block computes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from guidedcd.acceleration import attention_backend

RECOMPUTE = "_guidedcd_recompute"
"""Attribute of a block whose activations are recomputed: True keeps the outputs of attention, False nothing."""
_UNETS = ("UNet3DConditionModel", "AutoencoderKL")
_ATTENTION = tuple(
    getattr(torch.ops.aten, name).default
    for name in (
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
    )
)


class Compiler(Protocol):
    """The state of a fast network, as far as blocks are concerned."""

    def function(self, function: Callable[..., Any], *watched: nn.Module, variant: str = "") -> Callable[..., Any]:
        """`function`, compiled unless a `watched` module has hooks, and once for each `variant`."""


def repeated_blocks(network: nn.Module, names: Collection[str] = ()) -> tuple[str, ...]:
    """Names of the classes of a network's repeated blocks.

    Args:
        network: Any denoiser; a 3D UNet has none, since its layers have paths of their own.
        names: Class names from the teacher; without any, those of diffusers (`_repeated_blocks`).
    """
    if type(network).__name__ in _UNETS:
        return ()
    names = names or getattr(network, "_repeated_blocks", None) or ()
    return tuple(dict.fromkeys(type(m).__name__ for m in network.modules() if type(m).__name__ in names))


def forward(state: Compiler, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The output of a block's own forward method, on the fast paths.

    Args:
        state: Compiles the block's forward method, unless a module inside has hooks.
        block: With the attribute `RECOMPUTE`, its activations are computed again in the backward pass.
        args: As the stock method takes them.
        kwargs: Likewise.
    """
    stock = type(block).forward
    if torch.compiler.is_compiling():
        return stock(block, *args, **kwargs)
    inner = below(block)
    keeps = vars(block).get(RECOMPUTE) if torch.is_grad_enabled() else None
    function = stock if keeps is None else _recomputed(stock, keeps, drops(inner))
    order = _order(block, stock, args, kwargs)
    compiled = state.function(function, *inner, variant="" if order == attention_backend.USUAL else order)
    if compiled is function and keeps is not None:
        # The backward pass computes the block again, and must then choose the same kernels.
        compiled = recomputed(functools.partial(_within, order, stock), keeps, drops(inner))
    with attention_backend.first(order):
        return compiled(block, *args, **kwargs)


def below(module: nn.Module) -> list[nn.Module]:
    """The modules inside a module; `Module.modules` takes several times as long. A shared one may occur twice."""
    modules: list[nn.Module] = [child for child in module._modules.values() if child is not None]
    for one in modules:  # the list grows in the loop
        modules += [child for child in one._modules.values() if child is not None]
    return modules


def recomputed(function: Callable[..., Any], keeps: bool = False, random: bool = False) -> Callable[..., Any]:
    """`function`, whose activations the backward pass computes again.

    Args:
        function: A forward pass.
        keeps: Keep the outputs of fused attention: at 30,000 tokens attention takes two thirds of a block's time,
            and its output is a twentieth of a block's activations.
        random: Whether it drops activations, and its random numbers must be repeated.
    """
    options: dict[str, Any] = {"context_fn": _keep_attention} if keeps else {}

    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=random, **options, **kwargs)

    return run


_recomputed = functools.cache(recomputed)
"""For functions that are compiled, which must be the same object for all blocks."""


def drops(modules: Iterable[nn.Module]) -> bool:
    """Whether a module drops activations at random."""
    return any(isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0 for m in modules)


def _keep_attention() -> Any:
    return create_selective_checkpoint_contexts(list(_ATTENTION))


def _within(order: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with attention_backend.first(order):
        return function(*args, **kwargs)


def _order(block: nn.Module, stock: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The order of attention kernels for a block: chosen for its largest attention, at the first call of a size."""
    tensors = attention_backend.tensors_of(args, kwargs)
    if not tensors or not attention_backend.tries(tensors[0]):
        return attention_backend.USUAL
    graded = torch.is_grad_enabled() and any(p.requires_grad for p in block.parameters())
    return attention_backend.order_of(type(block), tensors, graded, lambda: stock(block, *args, **kwargs))
