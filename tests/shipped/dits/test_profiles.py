"""The profiles of Wan's published sizes: their runs are planned from the configurations alone."""

from __future__ import annotations

import pytest
import torch
import wan_sizes

from guidedcd.planning.gpus import SHARES, TRANSFORMERS, machine
from guidedcd.planning.meter import size as size_of
from guidedcd.planning.preprocess_cost import other_networks
from guidedcd.planning.skeletons import outline

PROFILES = {
    "wan-1.3b": ("1.3b", 1.419e9, (81, 480, 832)),
    "wan-5b": ("5b", 5.0e9, (121, 704, 1280)),
    "wan-a14b-high": ("a14b", 14.3e9, (81, 480, 832)),
}


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_reads_its_model_without_weights(tmp_path, profile):
    """From a folder of configurations, a profile's teacher has the published number of weights and size of videos."""
    import guidedcd

    size, weights, videos = PROFILES[profile]
    run = guidedcd.Run.from_profile(profile, teacher=f"wan:{wan_sizes.write(tmp_path, size)}", data="shapes")
    teacher = outline(run.teacher)

    assert sum(p.numel() for p in teacher.network.parameters()) == pytest.approx(weights, rel=0.01)
    geometry = teacher.geometry
    assert (geometry.frames, geometry.height, geometry.width) == videos
    low, high = run.preprocess.noise_range
    assert teacher.noise_range == pytest.approx((low, high), abs=2e-3)
    assert run.train.fast == run.preprocess.fast == "blocks"
    experts = 2 if profile == "wan-a14b-high" else 1
    assert other_networks(teacher) == (experts - 1) * size_of(teacher.network)


def test_transformers_have_shares_of_their_own():
    """Compiled blocks are faster than stock ones by the ratio that was measured, whatever the path of UNets reaches."""
    gpu = machine(torch.device("cpu"), like="h200")
    stock, compiled = (gpu.with_layers(fast, transformer=True) for fast in ("layers", "blocks"))
    assert stock.share == pytest.approx(TRANSFORMERS["no"][0])
    assert compiled.share == pytest.approx(TRANSFORMERS["blocks"][0])
    assert gpu.with_layers("layers").share == pytest.approx(SHARES["layers"])
    assert compiled.launch < stock.launch < gpu.launch
