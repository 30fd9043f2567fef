"""The group norm kernels against PyTorch's group norm."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as nnf


@pytest.mark.parametrize(("shape", "groups", "shift", "silu"), [((2, 70, 48), 4, 0, True), ((3, 33, 80), 8, 3, False),
                                                               ((2, 150, 16), 4, 1, True)])  # fmt: skip
def test_the_group_norm_kernel_is_group_norm(kernels, compare, shape, groups, shift, silu):
    """Values and gradients agree, for odd numbers of tokens, far from zero, with and without shift and SiLU."""
    channels = shape[2]
    tensors = [torch.randn(shape) + 5, torch.randn(channels), torch.randn(channels)]
    if shift:
        tensors.append(torch.randn(shift, channels))

    def fused(x, w, b, s=None):
        return kernels.GroupNorm.apply(x, w, b, s, groups, 1e-5, silu, torch.float32)

    def reference(x, w, b, s=None):
        y = nnf.group_norm((x if s is None else x + s[:, None]).transpose(1, 2), groups, w, b, 1e-5).transpose(1, 2)
        return nnf.silu(y) if silu else y

    compare(fused, reference, *tensors)


@pytest.mark.parametrize("n", [1, 4, 64])
@pytest.mark.parametrize("length", [1, 40, 640, 2560, 40960, 163840])
def test_reductions_are_cut_so_that_every_token_counts_once(n, length):
    """Chunks cover all tokens, none is empty, tiles fill them, and long reductions have work for a large GPU."""
    group_norms = pytest.importorskip("guidedcd.acceleration.kernels.group_norm")
    for columns in (2, 5, 20):
        chunk, chunks = group_norms.chunks_of(n, length, columns)
        assert chunk % group_norms.ROWS == 0 and chunk % group_norms.SUMMED == 0
        assert (chunks - 1) * chunk < length <= chunks * chunk
        programs = n * columns * chunks
        assert programs <= 2 * max(group_norms.PROGRAMS, n * columns)
        assert programs > group_norms.PROGRAMS // 2 or chunk <= 4 * group_norms.ROWS


@pytest.mark.parametrize("trained", ["x", "x and shift", "x and weights"])
def test_norm_kernels_compute_the_needed_gradients(kernels, device, trained):
    """With frozen weights, or a frozen shift, the other gradients are the same, and frozen tensors get none."""
    x, w, b, s = (y.to(device) for y in (torch.randn(2, 70, 16) + 1, *torch.randn(2, 16), torch.randn(2, 16)))
    x.requires_grad_(True)
    s.requires_grad_("shift" in trained)
    for p in (w, b):
        p.requires_grad_("weights" in trained)
    reference = nnf.silu(nnf.group_norm((x + s[:, None]).transpose(1, 2), 4, w, b).transpose(1, 2))
    layered = nnf.layer_norm(x + s[:, None], (16,), w, b)
    trained_tensors = [p for p in (x, w, b, s) if p.requires_grad]
    for fused, stock in (
        (kernels.GroupNorm.apply(x, w, b, s, 4, 1e-5, True, torch.float32), reference),
        (kernels.LayerNorm.apply(x + s[:, None], None, w, b, 1e-5, torch.float32)[1], layered),
    ):
        weight = torch.randn_like(x)
        for one, other in zip(*(torch.autograd.grad(y, trained_tensors, weight) for y in (fused, stock)), strict=True):
            assert (one - other).norm() <= 1e-5 * other.norm()
    assert all(p.grad is None for p in (w, b, s))
