"""Stores filled in parts, by several processes, or by one that is killed."""

from __future__ import annotations

import random
import shutil
import signal
import time
from functools import partial

import pytest
from short_training import launch_preprocessing
from stores import shard_files
from toy_plugin import make as toy_run

from guidedcd.cli.preprocess import parse_shard
from guidedcd.console import console
from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError
from guidedcd.preprocessing.preprocess import preprocess
from guidedcd.preprocessing.shard_files import begin
from guidedcd.preprocessing.shards import shard_name
from guidedcd.preprocessing.store import LatentStore, open_store

make = partial(toy_run, replace=("energy",))


@pytest.mark.slow
def test_parts_equal_a_whole(toy, tmp_path):
    """--shard 0/2 and 1/2, in one folder or in two put together, give the files of one run, byte for byte."""
    run = make(solver={"steps": 4}, preprocess={"shard_size": 1, "videos": 4, "draws_per_video": 2})
    whole = shard_files(preprocess(run, store_folder=tmp_path / "whole"))
    for number in (1, 0):
        preprocess(run, store_folder=tmp_path / "one", shard=(number, 2))
        preprocess(run, store_folder=tmp_path / f"part-{number}", shard=(number, 2))
    for name in shard_files(tmp_path / "part-1"):
        shutil.copy(tmp_path / "part-1" / name, tmp_path / "part-0" / name)

    assert len(whole) == 24  # tensors and JSON of shards, scores and inversions
    assert shard_files(tmp_path / "one") == shard_files(tmp_path / "part-0") == whole
    assert len(LatentStore(preprocess(run, store_folder=tmp_path / "part-0", fill_parts=False))) == 8


@pytest.mark.slow
def test_an_incomplete_store_names_its_missing_shards(toy, tmp_path):
    """Opening or training on a store filled in part names the missing shards; a plain preprocess fills them."""
    run = make(preprocess={"shard_size": 1})
    folder = preprocess(run, store_folder=tmp_path / "s", shard=(1, 3))

    for ask in (lambda: LatentStore(folder), lambda: preprocess(run, store_folder=folder, fill_parts=False)):
        with pytest.raises(GuidedCDError, match=r"3 of its 5 shards are missing \(0, 2, 3\).*`shard=.I/N.`"):
            ask()
    assert len(shard_files(folder)) == 12
    assert len(LatentStore(preprocess(run, store_folder=folder))) == 15


@pytest.mark.slow
def test_a_new_energy_is_scored_in_parts(toy, tmp_path, capsys):
    """A complete store can be given the scores of a new energy in parts, of which the first leaves it unfinished."""
    preprocessing = {"videos": 2, "draws_per_video": 1, "shard_size": 1}
    folder = preprocess(make(energy={}, preprocess=preprocessing), store_folder=tmp_path / "s")
    run = make(preprocess=preprocessing)
    capsys.readouterr()
    preprocess(run, store_folder=folder, shard=(0, 2))
    printed = " ".join(capsys.readouterr().out.split())
    preprocess(run, store_folder=folder, shard=(1, 2))

    assert "part 0/2 is done, 1 shards of other parts lack scores" in printed
    assert len(open_store(run, folder)) == 2


def test_training_scores_a_new_energy_of_a_store_filled_in_parts(toy, tmp_path):
    """Training computes the scores of a new energy in a store that parts have completed."""
    preprocessing = {"videos": 2, "draws_per_video": 1, "shard_size": 1}
    for number in (0, 1):
        folder = preprocess(make(energy={}, preprocess=preprocessing), store_folder=tmp_path / "s", shard=(number, 2))
    run = make(preprocess=preprocessing)

    assert list(folder.glob(".part-*"))
    assert len(open_store(run, preprocess(run, store_folder=folder, fill_parts=False))) == 2


@pytest.mark.slow
def test_parts_may_be_written_together(toy, tmp_path, monkeypatch):
    """While one part is written another may be; the same part, or the whole, waits."""
    from guidedcd.preprocessing import preprocess as module
    from guidedcd.preprocessing import shard_files as store

    run, save = make(preprocess={"shard_size": 1, "videos": 4, "draws_per_video": 1}), store.save_shard
    waited = []

    def nested(*args):
        monkeypatch.setattr(store, "save_shard", save)
        with monkeypatch.context() as patch:
            original = module.locked

            def impatient(*names, wait, **options):
                return original(*names, wait=False, **options)

            patch.setattr(module, "locked", impatient)
            for shard in ((0, 2), (0, 1), (1, 2)):
                try:
                    preprocess(run, store_folder=tmp_path / "s", shard=shard)
                except GuidedCDError as error:
                    waited.append((shard, "being written by another process" in str(error)))
        save(*args)

    monkeypatch.setattr(store, "save_shard", nested)
    preprocess(run, store_folder=tmp_path / "s", shard=(0, 2))

    assert waited == [((0, 2), True), ((0, 1), True)]
    assert len(LatentStore(tmp_path / "s")) == 4


def test_a_store_with_run_json_alone_is_begun(tmp_path):
    """A folder with run.json, which another part has just written, becomes the store; other files are refused."""
    identity = {"format": 2, "shards": 1}
    (tmp_path / "run.json").write_text("{}")
    begin(tmp_path, identity)
    assert read_json(tmp_path / "store.json") == identity

    (tmp_path / "store.json").rename(tmp_path / "other.json")
    with pytest.raises(GuidedCDError, match="is not empty and is no latent store"):
        begin(tmp_path, identity)


def test_a_part_is_a_fraction():
    """--shard takes 0/1 to N-1/N; anything else is an error that states the form."""
    assert (parse_shard(None), parse_shard("0/1"), parse_shard("3/4")) == ((0, 1), (0, 1), (3, 4))
    for wrong in ("4/4", "1", "a/b", "-1/2", "1/0", "0/0", "0/" + "9" * 5000):
        with pytest.raises(GuidedCDError, match="`shard` must be I/N"):
            parse_shard(wrong)


def test_processes_share_shards_by_number(toy, tmp_path, monkeypatch):
    """A process that comes later, when others have finished shards, takes none that belongs to another."""
    run = make()
    folder = preprocess(run, store_folder=tmp_path / "s")
    for number in (1, 2):
        (folder / f"{shard_name(number)}.json").unlink()

    def wait(seconds):
        raise TimeoutError

    monkeypatch.setattr("guidedcd.preprocessing.preprocess.process", lambda: (1, 2))
    monkeypatch.setattr("guidedcd.preprocessing.preprocess.time.sleep", wait)
    with pytest.raises(TimeoutError):
        preprocess(run, store_folder=folder)
    console.quiet = False

    assert [(folder / f"{shard_name(n)}.json").exists() for n in range(3)] == [True, True, False]


@pytest.mark.slow
def test_killed_at_random_it_ends_the_same(toy, tmp_path):
    """SIGKILL at up to five random points, then the same command: the store of an uninterrupted run, bitwise."""
    run = make(energy={"pta": {}}, preprocess={"videos": 24, "draws_per_video": 8, "shard_size": 1})
    whole = shard_files(preprocess(run, store_folder=tmp_path / "whole"))
    folder, chance, kills = tmp_path / "s", random.Random(0), 0
    seen = 0
    while kills < 5:
        process = launch_preprocessing(run, folder)
        while len(list(folder.glob("shard-*"))) <= seen and process.poll() is None:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.15))
        if process.poll() is not None:  # a fast machine finished before the last kills
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills, seen = kills + 1, len(list(folder.glob("shard-*")))
    assert kills

    process = launch_preprocessing(run, folder)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert shard_files(folder) == whole
