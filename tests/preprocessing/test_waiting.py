"""Two processes that begin one store: the second waits, uses what the first computed, or goes on in its place."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from contextlib import contextmanager
from functools import partial

import pytest
from short_training import launch_preprocessing
from stores import shard_files
from toy_plugin import make as toy_run

from guidedcd.locks import locked
from guidedcd.preprocessing import preprocess as module
from guidedcd.preprocessing.preprocess import preprocess
from guidedcd.preprocessing.shards import shard_name
from guidedcd.preprocessing.store import LatentStore, open_store
from guidedcd.preprocessing.store_writer import ScoreWriter, StoreWriter

make = partial(toy_run, replace=("energy",))
SMALL = {"shard_size": 1, "videos": 2, "draws_per_video": 1}


@pytest.fixture
def fills(monkeypatch):
    """What was computed: ("shards" or "scores", their numbers) of each call."""
    calls = []
    for writer, name in ((StoreWriter, "shards"), (ScoreWriter, "scores")):

        def fill(self, folder, missing, *scores, name=name, original=writer.fill):
            calls.append((name, list(missing)))
            original(self, folder, missing, *scores)

        monkeypatch.setattr(writer, "fill", fill)
    return calls


@contextmanager
def waiting(run, folder, monkeypatch):
    """A thread that preprocesses `run` and waits for the lock of `folder`, which the block holds."""
    waits = threading.Event()
    original = module.locked

    def noticing(*args, wait, **options):
        def notice(owner, seconds):
            waits.set()
            wait(owner, seconds)

        return original(*args, wait=notice, **options)

    monkeypatch.setattr(module, "locked", noticing)
    thread = threading.Thread(target=preprocess, args=(run,), kwargs={"store_folder": folder}, daemon=True)
    with locked(folder, "the store"):
        thread.start()
        assert waits.wait(60)
        yield
    thread.join(60)
    assert not thread.is_alive()


def test_the_second_uses_what_the_first_computed(toy, tmp_path, monkeypatch, fills, capsys):
    """It states whose work it waits for, and computes nothing when that is finished."""
    run, folder = make(energy={}, preprocess=SMALL), tmp_path / "s"
    preprocess(run, store_folder=folder)
    shutil.move(folder / f"{shard_name(1)}.json", tmp_path)
    fills.clear()
    capsys.readouterr()
    with waiting(run, folder, monkeypatch):
        shutil.move(tmp_path / f"{shard_name(1)}.json", folder)
    printed = capsys.readouterr().out

    assert fills == []
    assert f"{folder}: pid {os.getpid()} is computing it; waiting for it (Ctrl-C stops)" in printed
    assert f"{folder}: waited 0 s for pid {os.getpid()}" in printed
    assert "to compute" not in printed


def test_a_waiting_process_continues_an_abandoned_store(toy, tmp_path, monkeypatch, fills):
    """When the lock is free and shards are missing, it computes these and no others."""
    run, folder = make(energy={}, preprocess=SMALL), tmp_path / "s"
    preprocess(run, store_folder=folder)
    (folder / f"{shard_name(1)}.json").unlink()
    fills.clear()
    with waiting(run, folder, monkeypatch):
        pass

    assert fills == [("shards", [1])]
    assert len(LatentStore(folder)) == 2


def test_another_energy_waits_for_the_predictions(toy, tmp_path, monkeypatch, fills):
    """Of two runs that differ in the options of an energy, the second computes its own scores only."""
    first, second = (make(energy={"pta": {"reference": kind}}, preprocess=SMALL) for kind in ("clean", "single-step"))
    folder = tmp_path / "s"
    preprocess(first, store_folder=tmp_path / "first")
    fills.clear()
    with waiting(second, folder, monkeypatch):
        shutil.copytree(tmp_path / "first", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".lock"))

    assert fills == [("scores", [0, 1])]
    assert [len(open_store(run, folder)) for run in (first, second)] == [2, 2]


def test_a_store_that_was_removed_meanwhile_is_begun_again(toy, tmp_path, monkeypatch, fills):
    """Whoever waited for a folder that is gone makes it anew, and holds the new one."""
    run, folder = make(energy={}, preprocess=SMALL), tmp_path / "s"
    with waiting(run, folder, monkeypatch):
        shutil.rmtree(folder)

    assert fills == [("shards", [0, 1])]
    assert (folder / ".lock").exists()


@pytest.mark.slow
def test_the_second_of_two_processes_outlives_the_first(toy, tmp_path):
    """The first is killed in the middle; the second ends well, and the store is that of one process, bitwise."""
    run = make(energy={"pta": {}}, preprocess={"videos": 12, "draws_per_video": 2, "shard_size": 1})
    whole = shard_files(preprocess(run, store_folder=tmp_path / "whole"))
    folder = tmp_path / "s"
    first = launch_preprocessing(run, folder)
    while not list(folder.glob("shard-*.json")):
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # the second has time to start
    second = launch_preprocessing(run, folder)
    while not (line := second.stdout.readline()).startswith("store"):
        assert line
    first.send_signal(signal.SIGKILL)
    first.wait()
    rest, _ = second.communicate(timeout=60)

    assert second.returncode == 0, rest
    assert f"pid {first.pid} is computing it; waiting for it" in line
    assert f" s for pid {first.pid}" in rest
    assert shard_files(folder) == whole
