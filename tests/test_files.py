"""Atomic files, locks and the sentences for failed writes."""

from __future__ import annotations

import errno
import multiprocessing

import pytest

from guidedcd.errors import GuidedCDError
from guidedcd.files import digest, explained, locked, read_json, replacing, write_json


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
