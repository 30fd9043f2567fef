"""A function of another environment, called as if it were here; differentiable once with respect to its tensor."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from guidedcd.environments.process import ForeignProcess, Program
from guidedcd.environments.server import DTYPES
from guidedcd.errors import GuidedCDError


class ForeignFunction:
    """A function of one tensor and texts that runs in another environment, in a process of its own.

    The process starts with the first call, and ends with this object or with this program, however that ends. A copy, a
    fork or a pickled object starts another. After a failure the next call starts anew.

    The function is called as `function(tensor, texts)` and returns a tensor, or a dict of tensors by name. Tensors are
    copied through shared memory of the host, and are on the tensor's device here. The function's random numbers depend
    on `seed` alone.
    """

    def __init__(self, program: Program) -> None:
        """Keep the function's place; nothing is started."""
        self.program = program
        self._process: ForeignProcess | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"program": self.program}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def process(self) -> ForeignProcess:
        """The running process, started where there is none.

        Raises:
            GuidedCDError: It cannot be started.
        """
        if self._pid != os.getpid():  # a fork: the lock may be held by a thread that does not exist here
            self._lock, self._pid, self._process = threading.Lock(), os.getpid(), None
        with self._lock:
            if self._process is None or not self._process.is_alive:
                self._process = ForeignProcess(self.program)
            return self._process

    def end(self) -> None:
        """End the process; the next call starts another."""
        if self._process is not None and self._pid == os.getpid():
            self._process.end()
        self._process = None

    def __call__(
        self, tensor: Tensor, texts: Sequence[str], *, device: str | None = None, seed: int = 0
    ) -> Tensor | dict[str, Tensor]:
        """The function's result.

        Args:
            tensor: Of any device and shape; the result has a gradient with respect to it if it requires one and the
                function returns one differentiable tensor.
            texts: The second argument.
            device: Where the function computes there, as torch names it; None is the device of `tensor`.
            seed: Of torch's random numbers there.

        Raises:
            GuidedCDError: The function failed, its process ended, or it gave no answer in time; also in the backward
                pass.
        """
        where = str(tensor.device) if device is None else device
        if torch.is_grad_enabled() and tensor.requires_grad:
            names, *tensors = _Call.apply(tensor, self.process(), list(texts), where, seed)
        else:
            names, tensors, _ = _call(self.process(), tensor, list(texts), where, seed, gradient=False)
        return tensors[0] if names is None else dict(zip(names, tensors, strict=True))


def _call(
    process: ForeignProcess, tensor: Tensor, texts: list[str], device: str, seed: int, *, gradient: bool
) -> tuple[list[str] | None, list[Tensor], int | None]:
    """Names of the results or None for one tensor, the results, and the call's number if it has a gradient."""
    if str(tensor.dtype).removeprefix("torch.") not in DTYPES:
        raise GuidedCDError(f"{process.program.what}: tensors of type {tensor.dtype} are not transferred.")
    released = [process.released.popleft() for _ in range(len(process.released))]
    request = {"do": "call", "texts": texts, "device": device, "seed": seed, "gradient": gradient, "release": released}
    answer, tensors = process.exchange(request, tensor.detach())
    names, differentiable = answer.get("names"), answer.get("differentiable") is True
    if names is None and len(tensors) == 1:
        return None, tensors, answer["id"] if differentiable else None
    if isinstance(names, list) and all(isinstance(name, str) for name in names) and len(names) == len(tensors):
        return names, tensors, None
    process.end()
    raise process.wrong("returned tensors without a name for each, so its process was ended")


class _Call(torch.autograd.Function):
    """A call whose gradient is computed in the other process, from the graph that it keeps."""

    @staticmethod
    def forward(
        ctx: Any, tensor: Tensor, process: ForeignProcess, texts: list[str], device: str, seed: int
    ) -> tuple[Any, ...]:
        names, tensors, number = _call(process, tensor, texts, device, seed, gradient=True)
        if number is None:
            ctx.mark_non_differentiable(*tensors)
            return names, *tensors
        ctx.process, ctx.number, ctx.shape, ctx.dtype = process, number, tensor.shape, tensor.dtype
        # The other process keeps a graph until no node here can request its gradient.
        weakref.finalize(ctx, process.released.append, number).atexit = False
        return None, *tensors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: None, vector: Tensor) -> tuple[Tensor | None, ...]:
        process = ctx.process
        if not process.is_alive:
            program = process.program
            raise GuidedCDError(f"{program.text} has no gradient any more: its process ended after it was called.")
        _, tensors = process.exchange({"do": "gradient", "of": ctx.number}, vector)
        shapes = [list(tensor.shape) for tensor in tensors]
        if shapes != [list(ctx.shape)]:
            process.end()
            text = f"has a gradient of shape {shapes[0] if len(shapes) == 1 else shapes}"
            raise process.wrong(f"{text} for a tensor of shape {list(ctx.shape)}, so its process was ended")
        (gradient,) = tensors
        if gradient.dtype != ctx.dtype:
            process.end()
            raise process.wrong(f"has a gradient of type {gradient.dtype} for a tensor of type {ctx.dtype}")
        if vector.isfinite().all() and not gradient.isfinite().all():
            raise process.wrong("has a gradient that is not finite")
        return gradient, None, None, None, None
