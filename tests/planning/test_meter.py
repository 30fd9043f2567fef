"""Counting operations, memory traffic and living bytes on the meta device."""

from __future__ import annotations

import attrs
import pytest
import torch
from planned_runs import gpu
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from guidedcd.planning.meter import Cost, Kernel, metered, without_memory
from guidedcd.planning.preprocess_cost import empty
from guidedcd.testing.tiny_teacher import tiny_teacher


def test_operations_are_those_of_torchs_counter():
    """A network on the meta device has the operations that torch's counter reports for real tensors."""
    teacher = tiny_teacher()
    z, t, cond = torch.randn(2, *teacher.geometry.latent_shape), torch.tensor([10, 900]), teacher.embed(["a b", "c"])
    # Torch's counter has no formula for the CPU's fused attention kernel, but counts every matmul.
    with FlopCounterMode(display=False) as real, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        teacher.net(z, t, cond)
    nn.Module.to(teacher, "meta")
    text = {key: value.to("meta") for key, value in cond.items()}
    with metered() as cost, torch.no_grad():
        teacher.net(z.to("meta"), t.to("meta"), text)

    assert cost.flops == real.get_total_flops()


def test_memory_is_what_is_alive():
    """The peak counts a result and its operands, but neither earlier tensors nor freed ones."""
    a = empty(1000)
    with metered() as cost:
        b = a + 1
        b = b * 2
        del b

    assert (cost.peak, cost.remaining) == (8000, 0)
    assert [kernel.moved for kernel in cost.kernels] == [8000, 8000]


def test_views_cost_nothing_and_writes_in_place_take_no_memory():
    """A transposed view is no kernel; an addition in place moves bytes but allocates none."""
    a = empty(10, 10)
    with metered() as cost:
        a.t().view(100) if a.t().is_contiguous() else a.t()
        a.add_(1)

    assert (len(cost.kernels), cost.peak) == (1, 0)


def test_saved_activations_are_kept_until_the_gradient():
    """After a forward pass the saved activations are alive; after the backward pass only the gradients are."""
    layers = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)).to("meta")
    with metered() as cost:
        loss = layers(empty(512, 64)).sum()
        held = cost.remaining
        torch.autograd.backward(loss)
        del loss
    weights = sum(p.numel() * 4 for p in layers.parameters())

    assert held >= 512 * 256 * 4
    assert weights <= cost.remaining < weights + 1000


def test_a_cached_kernel_counts_like_a_new_one():
    """Equal computations have equal costs; another dtype or size has another cost."""

    def cost(size: int, dtype: torch.dtype) -> tuple[int, int, int]:
        with metered() as counted:
            torch.nn.functional.silu(empty(size).to(dtype)) + 1
        return counted.flops, counted.peak, sum(kernel.moved for kernel in counted.kernels)

    first = cost(100, torch.bfloat16)
    assert cost(100, torch.bfloat16) == first
    assert cost(100, torch.float32) != first and cost(200, torch.bfloat16)[2] == 2 * first[2]


def test_attention_keeps_no_matrix():
    """Attention without a mask is counted as a fused kernel: with the same operations, and without the N x N matrix."""
    q = empty(1, 4, 512, 16).requires_grad_()
    with metered() as cost:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)

    assert cost.flops == 2 * 2 * 4 * 512 * 512 * 16
    assert cost.remaining < 4 * 512 * 512


def test_seconds_are_bound_by_the_slowest_of_three():
    """A kernel takes its operations' or its memory's time, whichever is longer; the host's launches may exceed both."""
    device = gpu()
    kernels = [Kernel(10**12, 0, True), Kernel(10**11, 0, False), Kernel(0, 10**9, True)]

    assert device.seconds(Cost(kernels)) == pytest.approx((1 + 1 + 1) / 0.5)
    assert attrs.evolve(device, launch=10.0).seconds(Cost(kernels)) == pytest.approx(30)


def test_meta_modules_keep_their_dtypes():
    """Moving a module to the meta device changes no dtype."""
    module = without_memory(nn.Linear(2, 2).half())
    assert module.weight.is_meta and module.weight.dtype == torch.float16
