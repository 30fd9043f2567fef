"""Launching a Triton kernel again: what is found out once is kept, and only for calls of the same kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guidedcd.acceleration.kernels.launch import Launcher, cdiv, power_of_2


class Kernel:
    """Counts how often its arguments are specialised, and records what was launched after that."""

    arg_names = ("X", "N", "SCALE", "BLOCK", "WIDTH")

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.launched: list[Any] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def ask(*args: Any, **constants: Any) -> Any:
            self.asked.append((grid, args, constants))
            return Compiled(self, len(self.asked))

        return ask


class Compiled:
    """What a `Kernel` gives, by number."""

    def __init__(self, kernel: Kernel, number: int) -> None:
        self.kernel, self.number = kernel, number

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args: self.kernel.launched.append((self.number, grid, args))


def test_a_second_call_of_a_kind_is_launched_at_once():
    """The second call goes to what the first one made, with constants in the kernel's order and a grid of three."""
    kernel, x, y = Kernel(), torch.zeros(8), torch.ones(8)
    launcher = Launcher(kernel)
    launcher[5, 2](x, 8, 0.5, WIDTH=4, BLOCK=16, num_warps=1)
    launcher[(3,)](y, 8, 0.5, WIDTH=4, BLOCK=16, num_warps=1)

    assert len(kernel.asked) == 1 and kernel.asked[0][0] == (5, 2)
    ((number, grid, args),) = kernel.launched
    assert number == 1 and grid == (3, 1, 1) and args[0] is y and args[1:] == (8, 0.5, 16, 4)


@pytest.mark.parametrize("changed", ["dtype", "alignment", "number", "constant", "warps"])
def test_another_kind_of_call_is_specialised_again(changed):
    """Another dtype, alignment, number or constant runs Triton's dispatch again; the first kind stays cached."""
    kernel, x = Kernel(), torch.zeros(16)
    launcher = Launcher(kernel)
    call = {"x": x, "n": 8, "block": 16, "warps": 1}

    def launch(x: torch.Tensor, n: int, block: int, warps: int) -> None:
        launcher[(1,)](x, n, 0.5, BLOCK=block, WIDTH=4, num_warps=warps)

    others = {
        "dtype": {"x": x.double()},
        "alignment": {"x": x[1:]},
        "number": {"n": 9},
        "constant": {"block": 32},
        "warps": {"warps": 4},
    }
    launch(**call)
    launch(**{**call, **others[changed]})
    launch(**call)

    assert len(kernel.asked) == 2
    assert [number for number, *_ in kernel.launched] == [1]


def test_an_interpreter_computes_every_call():
    """Triton's interpreter gives nothing back to be kept, and computes at every call."""
    calls = []

    class Interpreted:
        arg_names = ("X",)

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *args: calls.append(args)

    launcher = Launcher(Interpreted())
    for _ in range(3):
        launcher[(1,)](torch.zeros(1))
    assert len(calls) == 3


@given(st.integers(1, 10**7), st.integers(1, 10**4))
def test_sizes_of_grids_and_tiles(number, by):
    """As many parts as hold a number, none empty; the smallest power of two that is not below it."""
    assert (cdiv(number, by) - 1) * by < number <= cdiv(number, by) * by
    power = power_of_2(number)
    assert power >= number > power // 2 and power & (power - 1) == 0
