"""The latent store: its draws, its errors, and the clips that it could not use."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest
import torch
from stores import shard_files
from toy_plugin import make

from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError
from guidedcd.preprocessing.preprocess import preprocess
from guidedcd.preprocessing.shards import shard_name
from guidedcd.preprocessing.store import LatentStore
from guidedcd.preprocessing.store_writer import StoreWriter


def test_store_is_the_same_however_it_was_interrupted(toy, tmp_path, monkeypatch):
    """A store whose preprocessing stopped after every shard equals one that was made in one go, byte for byte."""
    from guidedcd.preprocessing import shard_files as module

    run = make()
    whole = preprocess(run, store_folder=tmp_path / "whole")
    save, parts = module.save_shard, tmp_path / "parts"

    def save_and_stop(*args):
        save(*args)
        raise KeyboardInterrupt

    for _ in range(3):
        monkeypatch.setattr(module, "save_shard", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            preprocess(run, store_folder=parts)
    monkeypatch.setattr(module, "save_shard", save)
    preprocess(run, store_folder=parts)

    assert shard_files(whole) == shard_files(parts)


def test_draws_hold_the_teachers_predictions(toy, tmp_path):
    """A stored draw's predictions and score are the teacher's at the recomputed noisy latents."""
    run = make()
    store = LatentStore(preprocess(run, store_folder=tmp_path / "s"))
    teacher = run.teacher.build()
    grid = teacher.schedule.grid(10)

    for position in (0, 4, 14):
        draw = store[position]
        t = grid[draw.index][None]
        z = teacher.schedule.add_noise(draw.z0[None], draw.noise[None], t)
        with torch.no_grad():
            cond = teacher.net(z, t, teacher.embed([draw.sample.caption]))[0]
            uncond = teacher.net(z, t, teacher.null(1))[0]
        torch.testing.assert_close(draw.cond_output, cond, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(draw.uncond_output, uncond, atol=1e-5, rtol=1e-4)
        assert ("toy" in draw.scores) == (draw.index >= 5)


def test_indices_cover_the_grid(toy, tmp_path):
    """The draws of a video are stratified: one in every equal part of the grid."""
    run = make(preprocess={"draws_per_video": 5})
    store = LatentStore(preprocess(run, store_folder=tmp_path / "s"))

    for video in range(5):
        assert [store[video * 5 + d].index // 2 for d in range(5)] == [0, 1, 2, 3, 4]


def test_foreign_store_is_refused(toy, tmp_path):
    """A store of another grid is refused with what differs; nothing in it changes."""
    folder = preprocess(make(), store_folder=tmp_path / "s")
    before = sorted((p.name, p.stat().st_mtime_ns) for p in folder.iterdir())

    with pytest.raises(GuidedCDError, match=r"belongs to another run \(steps: 10 there, 20 here\)"):
        preprocess(make(solver={"steps": 20}), store_folder=folder)

    assert sorted((p.name, p.stat().st_mtime_ns) for p in folder.iterdir()) == before


def test_a_complete_store_is_not_written_to(toy, tmp_path, monkeypatch):
    """Several users can train from one store that they may only read."""
    folder = preprocess(make(), store_folder=tmp_path / "s")
    monkeypatch.setattr(
        "guidedcd.preprocessing.preprocess.write_json", lambda path, value: pytest.fail(f"wrote {path}")
    )

    assert preprocess(make(), store_folder=folder) == folder


def test_a_store_that_vanishes_is_an_error(toy, tmp_path, monkeypatch):
    """Shards that something else deletes are not waited for."""
    fill = StoreWriter.fill

    def fill_and_delete(writer: StoreWriter, folder: Path, *more: object) -> None:
        fill(writer, folder, *more)
        (folder / f"{shard_name(0)}.json").unlink()

    monkeypatch.setattr(StoreWriter, "fill", fill_and_delete)
    with pytest.raises(GuidedCDError, match="have vanished while it was being written .1 of them"):
        preprocess(make(), store_folder=tmp_path / "s")


def test_a_damaged_shard_is_named_and_computed_again(toy, tmp_path):
    """The error names a truncated shard and the file to delete; then the same command repairs the store."""
    run = make()
    folder = preprocess(run, store_folder=tmp_path / "s")
    path = folder / f"{shard_name(1)}.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])

    for ask in (lambda: LatentStore(folder), lambda: preprocess(run, store_folder=folder)):
        with pytest.raises(GuidedCDError, match=r"shard-00001\.safetensors is damaged"):
            ask()
    path.write_bytes(whole[:-1] + b"?")
    with pytest.raises(GuidedCDError, match=r"shard-00001\.safetensors is damaged \(its checksum differs"):
        LatentStore(folder).verify()
    (folder / f"{shard_name(2)}.json").write_text("{")
    with pytest.raises(GuidedCDError, match=r"shard-00002\.safetensors is damaged .*Delete shard-00002\.json"):
        LatentStore(folder)

    (folder / f"{shard_name(2)}.json").unlink()
    (folder / f"{shard_name(1)}.json").unlink()
    preprocess(run, store_folder=folder)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("shard-00001.json", lambda v: v.pop("samples"), r"shard-00001.*samples is missing"),
        ("shard-00001.json", lambda v: v["samples"].append(v["samples"][0]), "noise_seed has shape|z0 has shape"),
        (
            "shard-00001.json",
            lambda v: v["samples"][0].update(caption=3),
            r"samples\[0\]\.caption is 3; it must be t",
        ),
        ("store.json", lambda v: v.update(shards=10**12), "10{12} shards of 2 videos cannot hold 5"),
        ("store.json", lambda v: v.update(shards="x"), "shards is 'x'; it must be a whole number"),
        ("store.json", lambda v: v.pop("geometry"), "geometry is missing"),
    ],
)
def test_a_store_of_another_form_is_one_sentence(toy, tmp_path, name, change, words):
    """JSON without keys, with other types or numbers, or with more samples than tensors is named."""
    folder = preprocess(make(), store_folder=tmp_path / "s")
    value = read_json(folder / name)
    change(value)
    (folder / name).write_text(json.dumps(value))

    with pytest.raises(GuidedCDError, match=words):
        LatentStore(folder)


def test_unreadable_clips_are_listed_or_stop_the_run(toy, tmp_path):
    """Broken clips are listed with their reason; more than the allowed share stops the run, every time."""
    run = make(data=[{"toy": {"broken": 3}}], preprocess={"max_skipped": 0.5})
    store = LatentStore(preprocess(run, store_folder=tmp_path / "s"))
    assert store.skipped == [{"id": "toy/2", "reason": "the file holds no video stream"}]
    assert len(store) == 4 * 3

    strict = attrs.evolve(run, preprocess=attrs.evolve(run.preprocess, max_skipped=0.1))
    for _ in range(2):
        with pytest.raises(GuidedCDError, match=r"1 of 5 clips could not be used \(the first, toy/2"):
            preprocess(strict, store_folder=tmp_path / "s")


def test_a_dataset_that_is_too_small_begins_no_store(toy, tmp_path):
    """A dataset that is too small is found out before a store is begun."""
    with pytest.raises(GuidedCDError, match="dataset 'toy' has 50 clips"):
        preprocess(make(preprocess={"videos": 60}), store_folder=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_no_usable_clip_is_an_error(toy, tmp_path):
    """However many clips may be skipped, none at all is too few."""
    run = make(data=[{"toy": {"broken": 1}}], preprocess={"max_skipped": 1.0})
    with pytest.raises(GuidedCDError, match="none of 5 clips could be used"):
        preprocess(run, store_folder=tmp_path / "s")
