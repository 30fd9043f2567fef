"""Triton kernels that are launched with little work for the host.

A launch by `kernel[grid](...)` finds out anew what it is called with: which arguments are aligned, which are multiples
of 16, which options hold. A pass through a video network launches hundreds of kernels, always with the same few sizes,
so what was found the first time is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 16
"""Bytes; Triton makes another kernel where a pointer is not a multiple of them."""


class Launcher:
    """A Triton kernel; called like one, `kernel[grid](*args, **constants)`, tensors and numbers first, without names.

    It runs on the device of the first tensor.
    """

    def __init__(self, kernel: Any) -> None:
        """Take a function made by `triton.jit`."""
        self.kernel = kernel
        self._found: dict[tuple, tuple[Any, tuple]] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        """What launches on `grid`, of one to three numbers."""
        return lambda *args, **constants: self._launch(grid, args, constants)

    def _launch(self, grid: tuple[int, ...], args: tuple, constants: dict[str, Any]) -> None:
        device = args[0].get_device()
        if device >= 0 and device != torch.cuda.current_device():
            with torch.cuda.device(device):
                return self._launch(grid, args, constants)
        # Numbers are told apart by their values, so that whatever Triton makes of them is the same too.
        known = [(arg.dtype, arg.data_ptr() % ALIGNMENT) if isinstance(arg, Tensor) else arg for arg in args]
        key = (device, *known, *constants.items())
        found = self._found.get(key)
        if found is not None:
            compiled, rest = found
            compiled[(*grid, 1, 1)[:3]](*args, *rest)
            return None
        compiled = self.kernel[grid](*args, **constants)
        if compiled is not None:  # Triton's interpreter compiles nothing
            rest = tuple(constants[name] for name in self.kernel.arg_names[len(args) :])
            self._found[key] = compiled, rest
        return None


def cdiv(number: int, by: int) -> int:
    """How many parts of size `by` hold `number`; Triton's own function serves kernels too, and is slow."""
    return -(-number // by)


def power_of_2(number: int) -> int:
    """The smallest power of two that is at least `number`, which is at least 1."""
    return 1 << (number - 1).bit_length()
