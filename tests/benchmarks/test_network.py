"""The benchmarks of the denoiser and of its kernels, with tiny sizes on the CPU."""

from __future__ import annotations

import re
import runpy
import sys
from itertools import pairwise

import pytest
import torch


@pytest.fixture
def scripts(repository, monkeypatch):
    """The folder of the scripts, which find each other and guidedcd."""
    monkeypatch.setattr(sys, "path", [str(repository / "benchmarks"), *sys.path])
    return repository / "benchmarks"


@pytest.mark.slow
def test_kernels_are_measured_one_by_one(scripts, device):
    """Every case runs, moves bytes or computes, and what is offered instead of a layer computes the same."""
    pytest.importorskip("triton")
    import fast_kernels

    torch.manual_seed(0)
    results = {}
    for case in fast_kernels.Cases(device, tiny=True):
        assert case.name not in results
        assert (case.moved > 0) != (case.flops > 0)
        results[case.name] = case.run()

    def named(start):
        return next(value for name, value in results.items() if re.match(rf"{start} \(", name))

    usual, other = named("temporal convolution").permute(0, 2, 3, 1), named("temporal convolution, three products")
    assert (usual - other).float().norm() < 2e-2 * usual.float().norm()
    three = torch.cat(named("queries, keys, values"), dim=1)
    for name in ("queries, keys, values in one product", "the same, joined anew"):
        assert (three - named(name)).float().norm() < 1e-2 * three.float().norm()


def test_more_recomputing_keeps_less_and_computes_more(scripts):
    """Counted without memory: from nothing over temporal and most to all, each step keeps less for more operations."""
    pytest.importorskip("triton")
    import memory

    costs = [memory.activations(name, tiny=True) for name in ("nothing", "temporal", "most", "all")]
    assert all(one["kept_gb"] > other["kept_gb"] > 0 for one, other in pairwise(costs))
    assert all(one["total_tflop"] < other["total_tflop"] for one, other in pairwise(costs))
    assert len({one["forward_tflop"] for one in costs}) == 1


@pytest.mark.slow
def test_the_network_is_measured_and_trained_as_the_trainer_does(scripts, rows_of, monkeypatch, tmp_path):
    """Forward passes and steps give times and small errors, and a step moves the weights."""
    out = tmp_path / "unet.json"
    command = ["unet.py", "--tiny", "--device", "cpu", "--only", "fast most,fast no-triton", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(scripts / "unet.py"), run_name="__main__")
    rows = rows_of(out)

    assert set(rows) == {"fast no-triton, batch 4", "step fast most, batch 3"}
    assert not any("error" in row for row in rows.values())
    assert rows["fast no-triton, batch 4"]["values"]["relative_error"] < 3e-2
    assert rows["step fast most, batch 3"]["details"]["moved"] > 0


def test_profiles_group_every_triton_kernel(scripts):
    """Every Triton kernel of the fast paths has a group of its own in a profile, none of them is `other`."""
    pytest.importorskip("triton")
    import unet

    folder = scripts.parent / "guidedcd" / "acceleration" / "kernels"
    texts = [path.read_text() for path in folder.glob("*.py")]
    names = [name for text in texts for name in re.findall(r"@triton.jit\ndef (\w+)\(", text) if name != "_softmax"]

    assert len(names) > 10
    groups = {name: unet.group_of(name) for name in names}
    assert set(groups.values()) == {"norm", "gated GELU", "sums of layers", "frame attention"}
    assert groups["_sums"] == groups["_back"] == "norm"
    assert unet.group_of("multi_tensor_apply_kernel<FusedOptimizerTensorListMetadata") == "optimiser"
