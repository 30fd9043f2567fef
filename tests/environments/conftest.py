"""A module of functions in a file, and the function of it in a process of another environment."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from guidedcd.environments.function import ForeignFunction
from guidedcd.environments.process import Program

FUNCTIONS = """
import os
import sys

import torch


def any_of_them(tensor, texts):
    return globals()[texts[0]](tensor, texts[1:])


def score(tensor, texts):
    lengths = torch.tensor([float(len(text)) for text in texts], dtype=tensor.dtype, device=tensor.device)
    return tensor.flatten(1).square().mean(1) * lengths + tensor.flatten(1).sin().sum(1)


def random(tensor, texts):
    return (tensor * torch.rand(tensor.shape)).flatten(1).sum(1)


def several(tensor, texts):
    return {"mean": tensor.mean(1), "count": torch.arange(3), "nothing": torch.empty(0, 2)}


def chatter(tensor, texts):
    print("loading", flush=True)
    os.write(1, b"more")
    input_ = sys.stdin.read()
    return tensor.mean(1) + len(input_)


def constant(tensor, texts):
    return torch.ones(len(texts))


def fails(tensor, texts):
    raise ValueError("no such\\ncaption")


def fails_backward(tensor, texts):
    return Backward.apply(tensor)


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        return tensor.sum(1)

    @staticmethod
    def backward(ctx, vector):
        raise RuntimeError("no backward")


def lists(tensor, texts):
    return tensor.tolist()


def unrelated(tensor, texts):
    return torch.ones(2, requires_grad=True) * 2


def overwrites(tensor, texts):
    return tensor.mul_(2).sum(1)


def process(tensor, texts):
    return torch.tensor([os.getpid(), torch.get_num_threads(), os.environ.get("RANK", "-1") != "-1"])


def sleeps(tensor, texts):
    import subprocess
    child = subprocess.Popen(["sleep", "100"])
    print(child.pid, flush=True)
    child.wait()


class Scaled(torch.nn.Module):
    max_tokens = 12

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))
        self.dropout = torch.nn.Dropout(0.9)

    def count_tokens(self, text):
        return 2 + len(text.split())

    def forward(self, tensor, texts):
        return self.dropout(tensor * self.factor).sum(1)


not_callable = 7
"""


@pytest.fixture(scope="session")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the functions."""
    path = tmp_path_factory.mktemp("functions") / "functions.py"
    path.write_text(FUNCTIONS)
    return path


@pytest.fixture(scope="session")
def shared_process(functions):
    """All functions of the file in one process, which takes seconds to start: the first text is the name."""
    function = ForeignFunction(Program(what="test", python=sys.executable, function=f"{functions}:any_of_them"))
    yield function
    function.end()


@pytest.fixture
def foreign(shared_process):
    """`foreign("score")`: a function of the file in the shared process."""
    return lambda name: lambda tensor, texts, **options: shared_process(tensor, [name, *texts], **options)


@pytest.fixture
def own_process(functions):
    """`own_process("score")`: a function of the file in a process of its own, which ends with the test."""
    started = []

    def start(name: str, **options: object) -> ForeignFunction:
        program = Program(what="test", python=sys.executable, function=f"{functions}:{name}", **options)
        started.append(ForeignFunction(program))
        return started[-1]

    yield start
    for function in started:
        function.end()
