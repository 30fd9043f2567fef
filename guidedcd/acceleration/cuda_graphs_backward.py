"""A function of one tensor and its gradient as two CUDA graphs, for networks of many short kernels such as rewards."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from guidedcd.acceleration.cuda_graphs import captured, warm_up


class Graphs:
    """The graphs for one input size, and the memory that they read and write."""

    def __init__(self, function: Callable[[Tensor], Tensor], like: Tensor) -> None:
        """Warm up, then record."""
        self.x = like.detach().clone().requires_grad_(True)
        self.use: weakref.ref[Use] | None = None

        def both() -> None:
            y = function(self.x)
            torch.autograd.grad(y, self.x, torch.zeros_like(y))

        warm_up(both)
        self.forward, self.y = captured(lambda: function(self.x))
        self.grad = torch.zeros_like(self.y)
        self.backward, (self.dx,) = captured(
            lambda: torch.autograd.grad(self.y, self.x, self.grad), self.forward.pool()
        )

    def is_busy(self) -> bool:
        """Whether an earlier pass still needs its activations, which lie in the graphs' memory, for a gradient."""
        use = self.use() if self.use is not None else None
        return use is not None and not use.done


class Use:
    """One forward pass; it exists as long as its gradient can be computed."""

    done = False


class Replayed(torch.autograd.Function):
    """Both graphs as one differentiable function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, graphs: Graphs) -> Tensor:
        """The function's value."""
        ctx.graphs, ctx.use = graphs, Use()
        graphs.use = weakref.ref(ctx.use)
        graphs.x.detach().copy_(x)
        graphs.forward.replay()
        return graphs.y.detach().clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient of x."""
        graphs = ctx.graphs
        if graphs.use() is not ctx.use:
            raise RuntimeError("a replayed function was used again before this gradient was computed")
        ctx.use.done = True
        graphs.grad.copy_(grad)
        graphs.backward.replay()
        return graphs.dx.clone(), None


class GradientReplay:
    """A frozen function of one tensor that records CUDA graphs for each input size and replays them.

    It replays if the input is on a GPU and needs a gradient; otherwise, and for a second forward pass before the first
    one's gradient, it calls the function. The graphs keep their memory, activations included.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        """Set the function."""
        self.function = function
        self.recorded: dict[Any, Graphs] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """function(x)."""
        if not (x.is_cuda and torch.is_grad_enabled() and x.requires_grad):
            return self.function(x)
        key = x.shape, x.dtype, x.device
        if key not in self.recorded:
            self.recorded[key] = Graphs(self.function, x)
        graphs = self.recorded[key]
        return self.function(x) if graphs.is_busy() else Replayed.apply(x, graphs)
