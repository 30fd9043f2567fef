"""Towers and their gradients as CUDA graphs: who may use a graph's memory, and what is said on a GPU."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch
from tiny_rewards import BUILDERS, write
from torch import Tensor

from guidedcd.acceleration import cuda_graphs_backward
from guidedcd.acceleration.cuda_graphs_backward import GradientReplay, Graphs, Replayed
from guidedcd.acceleration.int8 import quantise


def function(x: Tensor) -> Tensor:
    """Something whose gradient depends on where it is taken."""
    return (x.double() ** 3).sum(dim=1).float()


class Recorded(Graphs):
    """What a GPU's graphs do, on a CPU: everything is written to the same places at every replay."""

    def __init__(self, like: Tensor) -> None:
        self.x, self.use = like.detach().clone().requires_grad_(True), None
        self.y = function(self.x)
        self.grad, self.dx = torch.zeros_like(self.y), torch.zeros_like(self.x)
        self.forward, self.backward = SimpleNamespace(replay=self.ahead), SimpleNamespace(replay=self.back)

    @torch.enable_grad()
    def ahead(self) -> None:
        """The forward graph."""
        self.y = function(self.x)

    def back(self) -> None:
        """The other one."""
        (self.dx,) = torch.autograd.grad(self.y, self.x, self.grad)


def test_values_and_gradients_are_the_functions():
    """Two uses one after the other have their own values and gradients, scaled by what comes after."""
    graphs, inputs = Recorded(torch.zeros(2, 3)), torch.randn(2, 2, 3)
    for x in inputs:
        replayed, plain = (x.clone().requires_grad_(True) for _ in range(2))
        actual, expected = Replayed.apply(replayed, graphs), function(plain)
        assert torch.equal(actual, expected) and graphs.is_busy()
        (2 * actual).sum().backward()
        (2 * expected).sum().backward()
        assert not graphs.is_busy()
        torch.testing.assert_close(replayed.grad, plain.grad)


def test_a_graph_is_busy_until_its_output_is_gone():
    """A pass whose gradient may still be computed keeps its graph busy."""
    graphs = Recorded(torch.zeros(1, 3))
    assert not graphs.is_busy()
    y = Replayed.apply(torch.randn(1, 3, requires_grad=True), graphs)
    assert graphs.is_busy()
    del y
    assert not graphs.is_busy()


def test_a_late_gradient_is_an_error():
    """What the next use has overwritten is not taken for a gradient."""
    graphs = Recorded(torch.zeros(1, 3))
    first, second = (Replayed.apply(torch.randn(1, 3, requires_grad=True), graphs) for _ in range(2))
    second.sum().backward()
    with pytest.raises(RuntimeError, match="used again"):
        first.sum().backward()


def test_both_graphs_are_recorded_after_a_warm_up(monkeypatch):
    """Three calls with their gradients come first; then value and gradient are recorded, in memory that they share."""
    events, stream = [], SimpleNamespace(wait_stream=lambda other: None)

    class Graph:
        def pool(self) -> str:
            return "memory"

    def graph(recorded: Graph, **options: object) -> contextlib.nullcontext:
        events.append(options)
        return contextlib.nullcontext()

    def watched(x: Tensor) -> Tensor:
        events.append("called")
        return function(x)

    for name, stub in {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda one: contextlib.nullcontext(),
        "synchronize": lambda: events.append("waited"),
        "CUDAGraph": Graph,
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    x = torch.randn(2, 3)
    graphs = Graphs(watched, x)

    how = {"capture_error_mode": "thread_local"}
    assert events == [*["called"] * 3, "waited", {"pool": None, **how}, "called", {"pool": "memory", **how}]
    assert torch.equal(graphs.y, function(x)) and graphs.grad.shape == graphs.y.shape
    assert graphs.dx.shape == x.shape and isinstance(graphs.forward, Graph) and isinstance(graphs.backward, Graph)


def test_on_a_cpu_and_without_gradient_nothing_is_recorded(monkeypatch):
    """The function itself is called."""
    monkeypatch.setattr(cuda_graphs_backward, "Graphs", None)
    replay, x = GradientReplay(function), torch.randn(2, 3)
    assert torch.equal(replay(x), function(x))
    assert torch.equal(replay(x.requires_grad_(True)), function(x))


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("name", ["clip", "internv2"])
def test_a_reward_replays_graphs_after_use_graphs(name, recomputes, tmp_path):
    """Once is enough; scores stay as they were, and graphs are forgotten where weights are moved."""
    reward = BUILDERS[name](write(tmp_path), gradient_checkpointing=recomputes)
    video = torch.rand(2, 4, 3, 20, 32)
    before = reward(video, ["a", "b"])
    reward.use_graphs()
    reward.use_graphs()
    tower = reward.pixel_features
    assert isinstance(tower, GradientReplay) and not isinstance(tower.function, GradientReplay)
    assert torch.equal(reward(video, ["a", "b"]), before)
    tower.recorded["a size"] = None
    reward.double()
    assert not tower.recorded


@pytest.mark.gpu
@pytest.mark.parametrize(("in_int8", "recomputes"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("name", ["clip", "hps", "internv2"])
def test_on_a_gpu_replayed_rewards_are_the_rewards(name, in_int8, recomputes, tmp_path):
    """Scores and gradients of several clips, in turn and two at once, are those without graphs; also in int8."""
    files = write(tmp_path)
    plain, replayed = (BUILDERS[name](files, gradient_checkpointing=again).cuda() for again in (False, recomputes))
    for reward in (plain, replayed) if in_int8 else ():
        quantise(reward)
    replayed.use_graphs()
    videos = torch.rand(3, 1, 4, 3, 20, 32, device="cuda")

    def graded(reward: torch.nn.Module, some: Tensor) -> list[Tensor]:
        inputs = [video.clone().requires_grad_(True) for video in some]
        scores = [reward(video, ["a"]) for video in inputs]
        sum(score.sum() for score in scores).backward()
        return [*(score.detach() for score in scores), *(video.grad for video in inputs)]

    for some in (videos[:1], videos[1:2], videos[1:], videos[:1]):
        torch.testing.assert_close(graded(replayed, some), graded(plain, some))
    assert replayed.pixel_features.recorded
