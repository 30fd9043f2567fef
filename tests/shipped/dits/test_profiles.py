"""The profiles of published video transformers: their runs are planned with nothing downloaded."""

from __future__ import annotations

import pytest
import torch
from guidedcd_dits.published import PIPELINES

import guidedcd
from guidedcd.models.checkpoints import hub
from guidedcd.planning.gpus import SHARES, TRANSFORMERS, machine
from guidedcd.planning.meter import size as size_of
from guidedcd.planning.preprocess_cost import other_networks
from guidedcd.planning.skeletons import outline

PROFILES = {
    "wan-1.3b": (1.419e9, (81, 480, 832)),
    "wan-5b": (5.0e9, (121, 704, 1280)),
    "wan-a14b-high": (14.3e9, (81, 480, 832)),
    "cogvideox-2b": (1.69e9, (49, 480, 720)),
    "ltx-2b": (1.92e9, (161, 512, 704)),
}


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_is_planned_without_files_and_network(profile, monkeypatch):
    """With nothing downloaded, a profile's teacher has the published number of weights and size of videos."""

    def snapshot(*arguments: object, **options: object) -> None:
        raise AssertionError("nothing is downloaded for a plan")

    monkeypatch.setattr(hub, "snapshot", snapshot)
    weights, videos = PROFILES[profile]
    run = guidedcd.Run.from_profile(profile, data="shapes")
    teacher = outline(run.teacher)

    assert sum(p.numel() for p in teacher.network.parameters()) == pytest.approx(weights, rel=0.01)
    geometry = teacher.geometry
    assert (geometry.frames, geometry.height, geometry.width) == videos
    if profile.startswith("wan"):
        low, high = run.preprocess.noise_range
        assert teacher.noise_range == pytest.approx((low, high), abs=2e-3)
        assert run.train.fast == run.preprocess.fast == "blocks"
    experts = 2 if profile == "wan-a14b-high" else 1
    assert other_networks(teacher) == (experts - 1) * size_of(teacher.network)


def test_a_folder_of_the_same_name_comes_first(tmp_path, monkeypatch):
    """A folder whose path is a published id is read, also for a plan."""
    folder = PIPELINES["Wan-AI/Wan2.1-T2V-14B-Diffusers"].write(tmp_path / "Wan-AI" / "Wan2.1-T2V-1.3B-Diffusers")
    monkeypatch.chdir(tmp_path)
    teacher = outline(guidedcd.Run.from_profile("wan-1.3b", data="shapes").teacher)

    assert folder.is_dir() and teacher.network.config.num_layers == 40


def test_transformers_have_shares_of_their_own():
    """Compiled blocks are faster than stock ones by the ratio that was measured, whatever the path of UNets reaches."""
    gpu = machine(torch.device("cpu"), like="h200")
    stock, compiled = (gpu.with_layers(fast, transformer=True) for fast in ("layers", "blocks"))
    assert stock.share == pytest.approx(TRANSFORMERS["no"][0])
    assert compiled.share == pytest.approx(TRANSFORMERS["blocks"][0])
    assert gpu.with_layers("layers").share == pytest.approx(SHARES["layers"])
    assert compiled.launch < stock.launch < gpu.launch
