"""Memory of rewards that are replayed as CUDA graphs, whose activations stay reserved between steps."""

from __future__ import annotations

from typing import Any
from unittest import mock

import attrs
import torch
from torch import Tensor

from guidedcd.acceleration.cuda_graphs_backward import GradientReplay
from guidedcd.config.run import Run
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.planning.meter import Cost, metered
from guidedcd.planning.training_cost import scoring


def replayed(run: Run, teacher: Teacher, modules: dict[str, Any], cost: Cost) -> tuple[Cost, int]:
    """The cost of scoring without what the graphs hold, and the bytes that they hold.

    Args:
        run: See `scoring`.
        teacher: See `scoring`.
        modules: The rewards by name, on the meta device; they are modified.
        cost: That of scoring without graphs. The operations are the same.
    """
    calls: dict[Any, tuple[Any, Tensor]] = {}

    def outside(replay: GradientReplay, x: Tensor) -> Tensor:
        """The function, of which nothing outside of the graph is kept for the gradient."""
        calls[id(replay), x.shape, x.dtype] = replay.function, x.detach()
        with torch.no_grad():
            y = replay.function(x)
        return y + 0 * x.sum().to(y.dtype)

    for module in modules.values():
        if callable(getattr(module, "use_graphs", None)):
            module.use_graphs()
    with mock.patch.object(GradientReplay, "__call__", outside):
        rest = scoring(run, teacher, modules)
    return attrs.evolve(cost, peak=rest.peak), sum(_peak(function, x) for function, x in calls.values())


def _peak(function: Any, x: Tensor) -> int:
    with metered() as cost:
        y = function(x.requires_grad_())
        torch.autograd.grad(y, x, torch.zeros_like(y))
    return cost.peak
