"""A cached launcher of Triton kernels, which saves the host time.

A launch by `kernel[grid](...)` inspects its arguments every time: which are aligned, which are multiples of 16, which
options are set. A pass through a video network launches hundreds of kernels with the same few sizes, so the compiled
kernel of each combination is cached.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 16
"""Bytes; Triton compiles another kernel for a pointer that is not a multiple of them."""


class Launcher:
    """A Triton kernel with cached launches, called as `kernel[grid](*args, **constants)`.

    Tensors and numbers come first, by position; constants follow by name. It runs on the device of the first tensor.
    """

    def __init__(self, kernel: Any) -> None:
        """Wrap a function decorated with `triton.jit`."""
        self.kernel = kernel
        self._cache: dict[tuple, tuple[Any, tuple]] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        """The function that launches on `grid`, one to three numbers."""
        return lambda *args, **constants: self._launch(grid, args, constants)

    def _launch(self, grid: tuple[int, ...], args: tuple, constants: dict[str, Any]) -> None:
        device = args[0].get_device()
        if device >= 0 and device != torch.cuda.current_device():
            with torch.cuda.device(device):
                return self._launch(grid, args, constants)
        # Triton specialises on the values of numbers, so the key contains the values.
        keys = [(arg.dtype, arg.data_ptr() % ALIGNMENT) if isinstance(arg, Tensor) else arg for arg in args]
        key = (device, *keys, *constants.items())
        entry = self._cache.get(key)
        if entry is not None:
            compiled, rest = entry
            compiled[(*grid, 1, 1)[:3]](*args, *rest)
            return None
        compiled = self.kernel[grid](*args, **constants)
        if compiled is not None:  # Triton's interpreter compiles nothing
            rest = tuple(constants[name] for name in self.kernel.arg_names[len(args) :])
            self._cache[key] = compiled, rest
        return None


def cdiv(number: int, by: int) -> int:
    """`number` / `by`, rounded up; Triton's own function also runs in kernels and is slow on the host."""
    return -(-number // by)


def power_of_2(number: int) -> int:
    """The smallest power of two that is at least `number`, which is at least 1."""
    return 1 << (number - 1).bit_length()
