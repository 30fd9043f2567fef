"""Atomic files, their names, and the sentences for failed writes."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError, unwritable
from guidedcd.files import append_text, check_writable, digest, file_digest, leftovers, replacing, write_json


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


def test_a_signal_while_a_temporary_folder_is_removed_leaves_nothing(tmp_path, monkeypatch):
    """The removal is completed before the interruption goes on."""
    remove = shutil.rmtree

    def interrupted(folder: Path, **options: object) -> None:
        monkeypatch.setattr(shutil, "rmtree", remove)
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "x") as part:
        part.write_text("all")

    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission"), (errno.ENOTDIR, "in the way")],
)
def test_a_failed_write_is_an_error_with_a_remedy(tmp_path, number, words):
    """Each usual cause of a failed write has its own sentence with the path in it."""
    error = unwritable(OSError(number, "x"), tmp_path)

    assert words in str(error)
    assert str(tmp_path) in str(error)


def test_every_library_that_writes_reports_a_full_disk(tmp_path):
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


def test_an_error_names_the_final_path(tmp_path):
    """The name of the temporary folder is of no use to the user."""
    with pytest.raises(GuidedCDError, match="disk is full") as caught, replacing(tmp_path / "student") as folder:
        folder.mkdir()
        with replacing(folder / "model.safetensors"):
            raise OSError(errno.ENOSPC, "No space left on device")

    assert str(tmp_path / "student" / "model.safetensors") in str(caught.value)
    assert ".part" not in str(caught.value)


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


def test_a_folder_that_cannot_be_created_is_detected(tmp_path):
    """Below a file nothing can be made; asking makes nothing."""
    (tmp_path / "file").touch()
    check_writable(tmp_path / "a" / "b")

    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(GuidedCDError, match="a file is in the way"):
        check_writable(tmp_path / "file" / "a")


def test_abandoned_files_are_removed(tmp_path, monkeypatch):
    """What a killed process left goes with the next write into the folder; whole files and live writers' stay."""
    monkeypatch.setattr("guidedcd.files.UNLOCKED_SECONDS", 0)
    for name in ("b", ".lock", ".c.1.part"):
        (tmp_path / name).touch()
    (tmp_path / ".a.part").mkdir()
    (tmp_path / ".link.part").symlink_to(tmp_path / "b")
    with replacing(tmp_path / "new") as part:
        part.touch()
        left = {path.name for path in tmp_path.iterdir()} - {part.parent.name}
        leftovers(tmp_path)
        assert part.exists()

    assert left == {"b", ".lock"}
    assert {path.name for path in tmp_path.iterdir()} == {"b", ".lock", "new"}


def test_where_nothing_can_be_locked_age_decides(tmp_path, monkeypatch):
    """Without locks a temporary folder is removed once it is too old to be still written."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    (tmp_path / ".a.part").mkdir()
    (tmp_path / ".b.part").mkdir()
    os.utime(tmp_path / ".a.part", (0, 0))
    leftovers(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == [".b.part"]


def test_temporary_names_cannot_be_foreseen(tmp_path):
    """A file is written in a new folder that nobody else can enter, so no planted link is followed."""
    names = set()
    for _ in range(2):
        with replacing(tmp_path / "a.txt") as part:
            part.write_text("x")
            names.add(part.parent.name)
            assert part.parent.stat().st_mode & 0o777 == 0o700

    assert len(names) == 2


def test_a_link_is_replaced_and_not_followed(tmp_path):
    """Where a link lies in the way of a result, its target stays as it is."""
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "a.json").symlink_to("precious")
    write_json(tmp_path / "a.json", 1)
    (tmp_path / "log").symlink_to("precious")
    with pytest.raises(GuidedCDError, match="symbolic link"):
        append_text(tmp_path / "log", "more")

    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "a.json").is_symlink()


def test_devices_are_not_replaced(tmp_path):
    """A pipe or device is no place for a file: it is refused and stays."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(GuidedCDError, match="is a device, pipe or socket"):
        write_json(tmp_path / "pipe", 1)

    assert (tmp_path / "pipe").is_fifo()


def test_pipes_and_devices_are_refused_at_once(tmp_path):
    """A named pipe or a device in the place of a file is refused at once, whoever reads it."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(GuidedCDError, match="is a device or pipe, not a file"):
            file_digest(path)
    with pytest.raises(IsADirectoryError):
        file_digest(tmp_path)


@pytest.mark.parametrize("name", ["n" * 256, "\u00e4" * 128, "a\udcff", "a\0b"])
def test_names_that_no_file_can_have_are_refused(tmp_path, name):
    """One rule for all names: at most 255 bytes, text, and no null byte."""
    with pytest.raises(GuidedCDError, match="Choose a"):
        write_json(tmp_path / name / "a.json", 1)
    with pytest.raises(GuidedCDError, match="Choose a"):
        check_writable(tmp_path / name)

    write_json(tmp_path / ("n" * 250 + ".json"), 1)
    assert [len(path.name) for path in tmp_path.iterdir()] == [255]


def test_a_rename_is_put_on_the_disk(tmp_path, monkeypatch):
    """The folder is synced after the rename, or a loss of power could undo it; so are new folders inside."""
    synced, sync = [], os.fsync

    def fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with replacing(tmp_path / "folder") as part:
        (part / "inner").mkdir(parents=True)
        (part / "inner" / "file").write_text("x")

    assert synced[-1] == tmp_path
    assert {path.name for path in synced} >= {"folder", "inner"}


def test_digest_ignores_key_order():
    """The fingerprint of a configuration depends on its content alone."""
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
