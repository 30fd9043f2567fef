"""Guiders in training and in the sampling of a teacher."""

from __future__ import annotations

import pytest
import torch
from short_training import trained
from toy_plugin import make

import guidedcd
from guidedcd.preprocessing.identity import identify, identify_scores


def test_a_guider_needs_no_other_store(toy, tmp_path):
    """Both predictions are stored without guidance, so that runs with different guiders share a store."""
    runs = {name: make(solver={"cfg": name}, train={"steps": 2}) for name in ("plain", "cfg-zero")}
    teacher = runs["plain"].teacher.build()

    assert len({str(identify(run, teacher)) for run in runs.values()}) == 1
    assert len({str(identify_scores(run, "toy")) for run in runs.values()}) == 1


@pytest.mark.slow
def test_a_guider_acts_in_training(toy, tmp_path):
    """On one store, the loss of the first step depends on the guider."""
    runs = {name: make(solver={"cfg": name}, train={"steps": 1}) for name in ("plain", "cfg-zero")}
    store = tmp_path / "store"
    losses = {name: trained(run, tmp_path / name, store)[0]["cd_loss"] for name, run in runs.items()}
    assert losses["plain"] != losses["cfg-zero"]


@pytest.mark.slow
def test_the_shapes_teacher_with_each_guider():
    """Samples differ by guider and are finite; with omega 0 they are the same."""
    teacher = guidedcd.load_teacher("shapes")
    options = {"steps": 4, "seeds": [0]}
    videos = {
        name: teacher.sample("a red circle moving left", guider=name, omega=omega, **options)
        for name, omega in (("plain", 4.0), ("apg", 4.0), ("cfg-zero", 4.0))
    }
    off = [teacher.sample("a red circle moving left", guider=name, omega=0.0, **options) for name in videos]

    assert all(video.isfinite().all() and video.min() >= 0 and video.max() <= 1 for video in videos.values())
    assert len({video.numpy().tobytes() for video in videos.values()}) == 3
    assert all(torch.equal(video, off[0]) for video in off)
    assert torch.equal(videos["plain"], teacher.sample("a red circle moving left", omega=4.0, **options))
