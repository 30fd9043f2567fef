"""What a computation costs, found by running it on tensors that have shapes and no memory (the meta device).

The code that will run later is called as it is. For every kernel a dispatch mode counts operations (the formulas of
`torch.utils.flop_counter`), bytes read and written, and the bytes that are alive at the moment.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import attrs
import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


@attrs.frozen
class Kernel:
    """One kernel: what bounds its time."""

    flops: int
    """Floating point operations; a multiplication with an addition counts as two."""
    moved: int
    """Bytes read and written."""
    half: bool
    """Whether its operands have 16 bits."""


@attrs.define
class Cost:
    """What a computation costs."""

    kernels: list[Kernel] = attrs.field(factory=list)
    peak: int = 0
    """Bytes alive at the worst moment, beyond what was there before."""
    kept: int = 0
    """Of these, alive when it was over."""

    @property
    def flops(self) -> int:
        """Floating point operations of all kernels."""
        return sum(kernel.flops for kernel in self.kernels)


class Meter(TorchDispatchMode):
    """Counts into `cost` what runs inside the block. Memory that exists before is not counted.

    A number that the code asks for (`item`, `if tensor:`) is 1; a copy to the host stays without memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cost, self._alive = Cost(), 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        given = _tensors((args, kwargs))
        if any(t.is_meta for t in given):
            if func is _ASKED:
                return True if given[0].dtype == torch.bool else 1
            if func is _COPIED and kwargs.get("device") is not None:
                kwargs = {**kwargs, "device": torch.device("meta"), "pin_memory": None}
            if not all(t.is_meta for t in given):  # a constant that the code made on the host
                args, kwargs = _all_without(args), _all_without(kwargs)
        key = None if func._schema.is_mutable else _signature((func, args, kwargs))
        if key in _KNOWN:
            kernel, shapes, made = _KNOWN[key]
            out = [torch.empty_strided(*shape, dtype=dtype, device="meta") for *shape, dtype in shapes]
            self._take(kernel, out)
            return out[0] if made is None else made(out)
        out = func(*args, **kwargs)
        before = {id(t.untyped_storage()) for t in given}
        made = [t for t in _tensors(out) if id(t.untyped_storage()) not in before]
        if not made and not func._schema.is_mutable:
            return out  # a view
        formula = flop_registry.get(func._overloadpacket)
        flops = int(formula(*args, **kwargs, out_val=out)) if formula else 0
        moved = sum(t.numel() * t.itemsize for t in (*given, *made))
        kernel = Kernel(flops, moved, bool(given) and given[0].itemsize == 2)
        self._take(kernel, made)
        if key is not None and all(t.is_meta for t in (*given, *made)):
            _remember(key, kernel, out, made)
        return out

    def _take(self, kernel: Kernel, made: list[Tensor]) -> None:
        self.cost.kernels.append(kernel)
        for tensor in made:
            self._count(tensor.untyped_storage())

    def _count(self, storage: Any) -> None:
        if id(storage) in self._known:
            return
        size = storage.nbytes()
        self._known[id(storage)] = weakref.ref(storage, partial(self._freed, id(storage), size))
        self._alive += size
        self.cost.kept = self._alive
        self.cost.peak = max(self.cost.peak, self._alive)

    def _freed(self, key: int, size: int, _: Any) -> None:
        self._known.pop(key, None)
        self._alive -= size
        self.cost.kept = self._alive


_KNOWN: dict[Any, tuple[Kernel, list[tuple], Any]] = {}
"""Kernels by what they were given: the same layer at the same size is worked out once."""


def _remember(key: Any, kernel: Kernel, out: Any, made: list[Tensor]) -> None:
    """Keep what a kernel made, if that was nothing but new dense tensors in a plain tuple or alone."""
    parts = [out] if isinstance(out, Tensor) else list(out) if isinstance(out, tuple) else [None]
    fresh = {id(t) for t in made}
    plain = all(p is None or (isinstance(p, Tensor) and id(p) in fresh and p.storage_offset() == 0) for p in parts)
    if not plain or len({id(t.untyped_storage()) for t in made}) != len(made):
        return
    if any(t.untyped_storage().nbytes() > (t.numel() or 1) * t.itemsize * 2 for t in made):
        return
    places = [p is not None for p in parts]

    def tuple_of(tensors: list[Tensor]) -> tuple:
        left = iter(tensors)
        return tuple(next(left) if there else None for there in places)

    shapes = [(tuple(t.shape), t.stride(), t.dtype) for t in made]
    _KNOWN[key] = kernel, shapes, None if isinstance(out, Tensor) else tuple_of


def _all_without(value: Any) -> Any:
    """Nested arguments, their tensors without memory."""
    if isinstance(value, Tensor):
        return (
            value
            if value.is_meta
            else torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        )
    if isinstance(value, tuple | list):
        return type(value)(map(_all_without, value))
    return {key: _all_without(one) for key, one in value.items()} if isinstance(value, dict) else value


def _signature(value: Any) -> Any:
    """What a kernel was given, as something to look up; tensors by shape alone. None where that cannot be."""
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.stride(), value.dtype, value.is_meta)
    if isinstance(value, tuple | list):
        return tuple(map(_signature, value))
    if isinstance(value, dict):
        return tuple((key, _signature(one)) for key, one in value.items())
    return type(value), value


_ASKED = torch.ops.aten._local_scalar_dense.default
_COPIED = torch.ops.aten._to_copy.default


def _tensors(tree: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, tuple | list):
        return []
    return [tensor for part in tree for tensor in _tensors(part)]


@contextmanager
def metered() -> Iterator[Cost]:
    """Count what runs in the block.

    What the meta device lacks is put in its place: attention without a mask is one kernel that keeps no matrix, as on
    a GPU; switching autocast off, which is never on here, does nothing.
    """
    attention = mock.patch.object(nnf, "scaled_dot_product_attention", _attention)
    with attention, mock.patch.object(torch, "autocast", _autocast), Meter() as meter:
        yield meter.cost


_composite, _autocasting = nnf.scaled_dot_product_attention, torch.autocast


def _autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
    return nullcontext() if device_type == "meta" else _autocasting(device_type, *args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if not query.is_meta or attn_mask is not None or query.dim() != 4 or enable_gqa:
        return _composite(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    return flash(query, key, value, dropout_p, is_causal, scale=scale)[0]


def without_memory(module: Any) -> Any:
    """A module on the meta device, in place; its dtypes stay."""
    return torch.nn.Module.to(module, "meta") if isinstance(module, torch.nn.Module) else module.to("meta")


def size(module: Any) -> int:
    """Bytes of a module's parameters and buffers; of something else 0."""
    if not isinstance(module, torch.nn.Module):
        return 0
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
