"""Atomic files, locks and the sentences for failed writes."""

from __future__ import annotations

import errno
import multiprocessing

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from guidedcd.errors import GuidedCDError
from guidedcd.files import check_writable, digest, explained, leftovers, locked, read_json, replacing, write_json


def test_interrupted_write_leaves_the_old_file(tmp_path):
    """A write that fails half-way leaves the file as it was and no temporary beside it."""
    path = tmp_path / "a.json"
    write_json(path, {"kept": 1})

    with pytest.raises(RuntimeError), replacing(path) as part:
        part.write_text("half")
        raise RuntimeError

    assert read_json(path) == {"kept": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_interrupted_folder_vanishes(tmp_path):
    """A folder that was not finished does not appear under its name."""
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "x") as part:
        part.mkdir()
        (part / "file").write_text("half")
        raise KeyboardInterrupt

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission"), (errno.ENOTDIR, "in the way")],
)
def test_failed_write_says_what_to_do(tmp_path, number, words):
    """Each usual cause of a failed write has its own sentence with the path in it."""
    error = explained(OSError(number, "x"), tmp_path)

    assert words in str(error)
    assert str(tmp_path) in str(error)


def test_a_full_disk_is_told_whoever_writes(tmp_path):
    """torch.save and safetensors hide the operating system's error; the user still reads that the disk is full."""
    with pytest.raises(GuidedCDError, match="disk is full"), replacing(tmp_path / "a") as part:
        part.symlink_to("/dev/full")
        with open(part, "wb") as handle:
            torch.save(torch.zeros(100_000), handle)
    hidden = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(GuidedCDError, match="disk is full"), replacing(tmp_path / "b"):
        raise hidden
    with pytest.raises(RuntimeError, match="a bug"), replacing(tmp_path / "c"):
        raise RuntimeError("a bug")

    assert list(tmp_path.iterdir()) == []


def test_others_may_read_what_is_written(tmp_path):
    """Files have the permissions of any new file, although safetensors gives them to their owner alone."""
    with replacing(tmp_path / "a.safetensors") as part:
        save_file({"a": torch.zeros(1)}, part)
    with replacing(tmp_path / "b") as part:
        part.mkdir()
        save_file({"a": torch.zeros(1)}, part / "a.safetensors")
    (tmp_path / "c").touch()
    modes = {path.stat().st_mode for path in tmp_path.rglob("*") if path.is_file()}

    assert modes == {(tmp_path / "c").stat().st_mode}


def test_a_folder_that_cannot_be_made_is_found_out(tmp_path):
    """Below a file nothing can be made; asking makes nothing."""
    (tmp_path / "file").touch()
    check_writable(tmp_path / "a" / "b")

    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(GuidedCDError, match="a file is in the way"):
        check_writable(tmp_path / "file" / "a")


def test_leftovers_are_removed_when_old_enough(tmp_path):
    """Half-written files and folders go, whole ones and those that may still be written stay."""
    for name in (".a.1.part", "b", ".lock"):
        (tmp_path / name).touch()
    (tmp_path / ".c.1.part").mkdir()
    leftovers(tmp_path, seconds=60)
    assert len([*tmp_path.iterdir()]) == 4

    leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"b", ".lock"}


def test_damaged_json_is_named(tmp_path):
    """Damaged JSON gives one sentence with the path, not a traceback of the parser."""
    (tmp_path / "run.json").write_text('{"a": ')

    with pytest.raises(GuidedCDError, match=r"run\.json is damaged"):
        read_json(tmp_path / "run.json")


def _hold(folder, ready, done):
    with locked(folder, "the store"):
        ready.set()
        done.wait(20)


def test_second_writer_is_refused(tmp_path):
    """While one process holds a folder another is refused; the lock goes with its holder."""
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, ready, done))
    other.start()
    assert ready.wait(20)

    with pytest.raises(GuidedCDError, match="being written by another process"), locked(tmp_path, "the store"):
        pass

    other.kill()
    other.join()
    with locked(tmp_path, "the store"):
        pass


def test_digest_ignores_key_order():
    """The fingerprint of a configuration depends on its content alone."""
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
