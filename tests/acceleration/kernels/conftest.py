"""Fixtures of the kernel tests."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor


@pytest.fixture
def kernels(monkeypatch, device):
    """The Triton functions, run by Triton's interpreter or on a GPU."""
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # what they are compared with is exact
    return importlib.import_module("guidedcd.acceleration.kernels.autograd")


@pytest.fixture
def compare(device):
    """`compare(kernel, reference, *inputs)`: values and gradients of a float32 function against a float64 one."""

    def compare(kernel, reference, *inputs: Tensor, tolerance: float = 2e-6) -> None:
        single = [x.to(device, copy=True).requires_grad_(True) for x in inputs]
        double = [x.to(device).double().requires_grad_(True) for x in inputs]
        actual, expected = kernel(*single), reference(*double)
        actual, expected = ([x] if isinstance(x, Tensor) else list(x) for x in (actual, expected))
        weights = [torch.randn_like(x) for x in actual]
        actual += torch.autograd.grad(actual, single, weights)
        expected += torch.autograd.grad(expected, double, [w.double() for w in weights])
        for value, exact in zip(actual, expected, strict=True):
            assert (value.double() - exact).norm() <= tolerance * exact.norm()

    return compare
