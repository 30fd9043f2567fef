"""A network's forward pass as one CUDA graph per input size, so that the GPU does not wait for Python."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from guidedcd.acceleration.blocks import below

WARM_UP = 3
"""Passes before a graph is recorded, in which kernels are compiled and chosen."""

REPLAYABLE = "_guidedcd_replayable"
"""Attribute of a hook that a graph may contain: it reads tensors of the pass, its weights and a `SideInput` alone."""
_PLAIN = (type(None), bool, int, float, str)


class SideInput(nn.Module):
    """A module that reads a tensor which is set for one forward pass of the network, beside its arguments."""

    inputs: Tensor | None = None
    """The tensor of the present pass, or None."""


def warm_up(function: Callable[[], object], times: int = WARM_UP) -> None:
    """Call `function` `times` times on a separate stream, which CUDA graphs require before they are recorded."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(times):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()


def captured(function: Callable[[], Any], pool: Any = None) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A CUDA graph of `function`, which has been warmed up, and the result, which lies in the graph's memory.

    Other threads may use the device meanwhile, for example to copy the next batch.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = function()
    return graph, result


class Replay:
    """A forward method that records a CUDA graph for each input size and replays it.

    It replays if the inputs are on a GPU, nothing needs a gradient, and no submodule has hooks but `REPLAYABLE` ones;
    otherwise it calls the class's forward method. A graph reads the current values of the weights. If weights have
    moved in memory, the graph is recorded again.
    """

    def __init__(self, network: nn.Module) -> None:
        """Set the network whose class's forward pass is recorded."""
        self.network = network
        self.recorded: dict[Any, tuple[torch.cuda.CUDAGraph, list[Tensor], list[Any]]] = {}
        self.pool: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Replay:
        """A forward method of the copied network, without graphs."""
        return Replay(copy.deepcopy(self.network, memo))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output; see the class. Only calls with `return_dict=False` are replayed."""
        leaves, structure = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        others = tuple(leaf for leaf in leaves if not isinstance(leaf, Tensor))
        simple = kwargs.get("return_dict") is False and all(isinstance(leaf, _PLAIN) for leaf in others)
        inner = below(self.network)
        sides = _side_inputs(inner)
        everything = [*tensors, *sides.values()]
        if not simple or not tensors or not all(x.is_cuda for x in everything) or not self.possible(everything, inner):
            return type(self.network).forward(self.network, *args, **kwargs)
        modules = (self.network, *inner)
        weights = tuple(p.data_ptr() for module in modules for p in module._parameters.values() if p is not None)
        return self.replay(tensors, leaves, structure, others, sides, weights)

    def possible(self, tensors: Sequence[Tensor], inner: Sequence[nn.Module]) -> bool:
        """Whether a call with these inputs may be replayed.

        Args:
            tensors: The inputs.
            inner: The modules inside the network, whose own hooks run outside of its forward pass.
        """
        if torch.is_grad_enabled() and any(x.requires_grad for x in (*tensors, *self.network.parameters())):
            return False
        if getattr(getattr(self.network, "time_embedding", None), "post_act", None) is not None:
            return False  # a frame rate that may be a Python number
        kind = tensors[0].device.type
        if torch.is_autocast_enabled(kind) and any(p.dtype == torch.float32 for p in self.network.parameters()):
            return False  # autocast would cache its narrow copies of weights, which lie in the graph's memory
        hooks = (h for m in inner for each in (m._forward_pre_hooks, m._forward_hooks) for h in each.values())
        return all(hasattr(hook, REPLAYABLE) for hook in hooks)

    def replay(
        self,
        tensors: list[Tensor],
        leaves: list[Any],
        structure: Any,
        others: tuple[Any, ...],
        sides: Mapping[SideInput, Tensor],
        weights: tuple[int, ...],
    ) -> Any:
        """Copy the inputs in, run the graph, copy the output out.

        Args:
            tensors: The tensors among the leaves of the arguments.
            leaves: All of them.
            structure: Turns leaves into arguments.
            others: Those that are no tensors.
            sides: The tensors beside the arguments, by the module that reads each.
            weights: Where the weights are in memory.
        """
        kind = tensors[0].device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        sizes = tuple((x.shape, x.dtype) for x in (*tensors, *sides.values()))
        key = (sizes, len(sides), structure, others, autocast, weights)
        if key not in self.recorded:
            self.recorded = {old: entry for old, entry in self.recorded.items() if old[-1] == key[-1]}
            self.recorded[key] = self.record(tensors, leaves, structure, sides)
        graph, inputs, output = self.recorded[key]
        for own, x in zip(inputs, [*tensors, *sides.values()], strict=True):
            own.copy_(x)
        graph.replay()
        return tuple(x.clone() if isinstance(x, Tensor) else x for x in output)

    def record(
        self, tensors: list[Tensor], leaves: list[Any], structure: Any, sides: Mapping[SideInput, Tensor]
    ) -> tuple[torch.cuda.CUDAGraph, list[Tensor], list[Any]]:
        """Warm up on copies of the inputs, then record."""
        inputs = [x.detach().clone() for x in tensors]
        copies = {module: x.detach().clone() for module, x in sides.items()}
        own = iter(inputs)
        args, kwargs = tree_unflatten([next(own) if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure)
        run = functools.partial(type(self.network).forward, self.network, *args, **kwargs)
        try:
            for module, copied in copies.items():
                module.inputs = copied
            with torch.no_grad():
                warm_up(run)
                graph, output = captured(run, self.pool)
        finally:
            for module, value in sides.items():
                module.inputs = value
        self.pool = graph.pool()
        return graph, [*inputs, *copies.values()], list(output)


def _side_inputs(modules: Sequence[nn.Module]) -> dict[SideInput, Tensor]:
    """The tensors that modules read beside the network's arguments."""
    readers = (module for module in modules if isinstance(module, SideInput))
    return {module: module.inputs for module in readers if module.inputs is not None}
