"""A function of one tensor and its gradient as two CUDA graphs: for networks of many short kernels, as rewards are."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from guidedcd.acceleration.cuda_graphs import captured, warm_up


class Graphs:
    """The graphs for one size of input, and the memory that they read and write."""

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

    def taken(self) -> bool:
        """Whether an earlier forward pass still waits for its gradient: its activations are in the graphs' memory."""
        use = self.use() if self.use is not None else None
        return use is not None and not use.done


class Use:
    """One forward pass; it lives as long as somebody can ask for its gradient."""

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
            raise RuntimeError("a replayed function was used again before this gradient was asked for once more")
        ctx.use.done = True
        graphs.grad.copy_(grad)
        graphs.backward.replay()
        return graphs.dx.clone(), None


class GradientReplay:
    """A frozen function of one tensor that records graphs for each size of input; calls it as it is where it cannot.

    Replayed where the input is on a GPU and wants a gradient, one use at a time: a second forward pass before the
    first one's gradient runs as it is. Its memory is kept, activations included.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        """Take what is run."""
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
        return self.function(x) if graphs.taken() else Replayed.apply(x, graphs)
