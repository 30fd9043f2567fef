"""The size of a store, before and after it fills a disk."""

from __future__ import annotations

import errno
import os
import shutil
from functools import partial

import pytest
from safetensors.torch import load_file
from stores import shard_files
from toy_plugin import make as toy_run

from guidedcd.errors import GuidedCDError
from guidedcd.preprocessing import estimates
from guidedcd.preprocessing.preprocess import preprocess

make = partial(toy_run, replace=("energy",))


def test_a_store_that_cannot_fit_is_refused_at_once(toy, tmp_path, monkeypatch):
    """Too little room is one sentence with both sizes, before anything is written."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(estimates.shutil, "disk_usage", lambda path: usage._replace(free=1000))

    with pytest.raises(GuidedCDError, match=r"needs about .* KB .*has 1 KB free: choose another `store`"):
        preprocess(make(), store_folder=tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("energies", [{}, {"pta": {}, "toy": {}}])
def test_the_estimated_size_is_within_a_tenth(toy, tmp_path, energies):
    """The estimate is within a tenth of what is written, apart from headers."""
    run = make(energy=energies, preprocess={"videos": 8, "draws_per_video": 4, "shard_size": 8, "dtype": "float16"})
    folder = preprocess(run, store_folder=tmp_path / "s")
    written = sum(t.nbytes for path in folder.rglob("*.safetensors") for t in load_file(path).values())

    assert estimates.store_size(run, run.teacher.build()).total == pytest.approx(written, rel=0.1)


@pytest.mark.slow
def test_a_disk_that_fills_up_keeps_what_is_done(toy, tmp_path, monkeypatch):
    """The error names the shard that could not be written; then the same command completes the same store."""
    from guidedcd.preprocessing import shard_files as store

    run, save, calls = make(preprocess={"videos": 3, "draws_per_video": 1}), store.save_file, []
    whole = shard_files(preprocess(run, store_folder=tmp_path / "whole"))

    def full(tensors, path):
        calls.append(path)
        if len(calls) == 4:  # a shard, its scores and inversions, the next shard
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(tensors, path)

    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(GuidedCDError, match=r"the disk is full: .*shard-00001.*the same command continues"):
        preprocess(run, store_folder=tmp_path / "s")
    assert {name.rpartition("/")[2] for name in shard_files(tmp_path / "s")} == {
        "shard-00000.json",
        "shard-00000.safetensors",
    }
    assert shard_files(preprocess(run, store_folder=tmp_path / "s")) == whole
