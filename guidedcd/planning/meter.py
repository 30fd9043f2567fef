"""Cost of a computation, counted while it runs on the meta device, whose tensors have shapes but no memory.

The code that will run later is called unchanged. A dispatch mode counts the operations of every kernel (formulas of
`torch.utils.flop_counter`), the bytes that it reads and writes, and the bytes that are alive.
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
    """The figures that bound the time of one kernel."""

    flops: int
    """Floating point operations; a multiplication with an addition counts as two."""
    moved: int
    """Bytes read and written."""
    half: bool
    """Whether its operands have 16 bits."""


@attrs.define
class Cost:
    """The cost of a computation."""

    kernels: list[Kernel] = attrs.field(factory=list)
    peak: int = 0
    """Bytes alive at the peak, without those that existed before."""
    remaining: int = 0
    """Bytes of the computation that are still alive."""

    @property
    def flops(self) -> int:
        """Floating point operations of all kernels."""
        return sum(kernel.flops for kernel in self.kernels)


class Meter(TorchDispatchMode):
    """Counts the kernels inside the block in `cost`, without memory that existed before.

    The value of a tensor on the host (`item`, `if tensor:`) is 1, and a copy to the host has no memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cost, self._alive = Cost(), 0
        self._storages: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        inputs = _tensors((args, kwargs))
        if any(t.is_meta for t in inputs):
            if func is _ITEM:
                return True if inputs[0].dtype == torch.bool else 1
            if func is _TO_COPY and kwargs.get("device") is not None:
                kwargs = {**kwargs, "device": torch.device("meta"), "pin_memory": None}
            if not all(t.is_meta for t in inputs):  # a constant that the code created on the host
                args, kwargs = _to_meta(args), _to_meta(kwargs)
        key = None if func._schema.is_mutable else _signature((func, args, kwargs))
        if key in _CACHE:
            kernel, shapes, tuple_of = _CACHE[key]
            outputs = [torch.empty_strided(*shape, dtype=dtype, device="meta") for *shape, dtype in shapes]
            self._add(kernel, outputs)
            return outputs[0] if tuple_of is None else tuple_of(outputs)
        out = func(*args, **kwargs)
        before = {id(t.untyped_storage()) for t in inputs}
        outputs = [t for t in _tensors(out) if id(t.untyped_storage()) not in before]
        if not outputs and not func._schema.is_mutable:
            return out  # a view
        formula = flop_registry.get(func._overloadpacket)
        flops = int(formula(*args, **kwargs, out_val=out)) if formula else 0
        moved = sum(t.numel() * t.itemsize for t in (*inputs, *outputs))
        kernel = Kernel(flops, moved, bool(inputs) and inputs[0].itemsize == 2)
        self._add(kernel, outputs)
        if key is not None and all(t.is_meta for t in (*inputs, *outputs)):
            _remember(key, kernel, out, outputs)
        return out

    def _add(self, kernel: Kernel, outputs: list[Tensor]) -> None:
        self.cost.kernels.append(kernel)
        for tensor in outputs:
            self._count(tensor.untyped_storage())

    def _count(self, storage: Any) -> None:
        if id(storage) in self._storages:
            return
        size = storage.nbytes()
        self._storages[id(storage)] = weakref.ref(storage, partial(self._freed, id(storage), size))
        self._alive += size
        self.cost.remaining = self._alive
        self.cost.peak = max(self.cost.peak, self._alive)

    def _freed(self, key: int, size: int, _: Any) -> None:
        self._storages.pop(key, None)
        self._alive -= size
        self.cost.remaining = self._alive


_CACHE: dict[Any, tuple[Kernel, list[tuple], Any]] = {}
"""Kernels by their arguments, so that equal layers of equal size are counted once."""


def _remember(key: Any, kernel: Kernel, out: Any, outputs: list[Tensor]) -> None:
    """Cache a kernel whose output is one new dense tensor, or a tuple of new dense tensors and None."""
    items = [out] if isinstance(out, Tensor) else list(out) if isinstance(out, tuple) else [None]
    fresh = {id(t) for t in outputs}
    plain = all(i is None or (isinstance(i, Tensor) and id(i) in fresh and i.storage_offset() == 0) for i in items)
    if not plain or len({id(t.untyped_storage()) for t in outputs}) != len(outputs):
        return
    if any(t.untyped_storage().nbytes() > (t.numel() or 1) * t.itemsize * 2 for t in outputs):
        return
    present = [item is not None for item in items]

    def tuple_of(tensors: list[Tensor]) -> tuple:
        remaining = iter(tensors)
        return tuple(next(remaining) if here else None for here in present)

    shapes = [(tuple(t.shape), t.stride(), t.dtype) for t in outputs]
    _CACHE[key] = kernel, shapes, None if isinstance(out, Tensor) else tuple_of


def _to_meta(value: Any) -> Any:
    """Nested arguments with all tensors on the meta device."""
    if isinstance(value, Tensor):
        if value.is_meta:
            return value
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    if isinstance(value, tuple | list):
        return type(value)(map(_to_meta, value))
    return {key: _to_meta(one) for key, one in value.items()} if isinstance(value, dict) else value


def _signature(value: Any) -> Any:
    """The arguments of a kernel as a key of `_CACHE`, in which tensors are represented by shape, stride and dtype."""
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.stride(), value.dtype, value.is_meta)
    if isinstance(value, tuple | list):
        return tuple(map(_signature, value))
    if isinstance(value, dict):
        return tuple((key, _signature(one)) for key, one in value.items())
    return type(value), value


_ITEM = torch.ops.aten._local_scalar_dense.default
_TO_COPY = torch.ops.aten._to_copy.default


def _tensors(tree: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, tuple | list):
        return []
    return [tensor for item in tree for tensor in _tensors(item)]


@contextmanager
def metered() -> Iterator[Cost]:
    """Count the kernels that run in the block.

    Two functions that the meta device lacks are replaced. Attention without a mask is one kernel that stores no
    matrix, as on a GPU. Switching autocast off, which is never on here, does nothing.
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
    """The module on the meta device, moved in place, with unchanged dtypes."""
    return torch.nn.Module.to(module, "meta") if isinstance(module, torch.nn.Module) else module.to("meta")


def size(module: Any) -> int:
    """Bytes of a module's parameters and buffers; 0 for an object that is no module."""
    if not isinstance(module, torch.nn.Module):
        return 0
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
