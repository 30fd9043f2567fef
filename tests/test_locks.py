"""Locks: a second writer is refused or waits, whatever the platform has for it."""

from __future__ import annotations

import ast
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

from guidedcd.errors import GuidedCDError
from guidedcd.locks import holder, locked, noted


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


@pytest.fixture
def ctrl_c():
    """SIGINT raises KeyboardInterrupt, also where the shell started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_a_wait_at_once(tmp_path, ctrl_c):
    """While a lock is waited for, its holder and the seconds are reported, and SIGINT ends the wait."""
    reports = []

    def wait(owner, seconds):
        assert seconds < 20, "the wait was not interrupted"
        reports.append((owner, seconds))
        if len(reports) == 3:
            threading.Timer(0.05, signal.raise_signal, [signal.SIGINT]).start()

    with locked(tmp_path, "the store"):
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt), locked(tmp_path, "the store", wait=wait):
            pass

    assert time.monotonic() - began < 5
    assert {owner for owner, _ in reports} == {f"pid {os.getpid()}"}
    assert [seconds for _, seconds in reports] == sorted(seconds for _, seconds in reports)


def test_processes_of_one_launch_share_their_lock(tmp_path):
    """A note tells processes that were started together from others; the holder's number is read without it."""
    assert not noted(tmp_path, "here:1")
    with locked(tmp_path, "the store", note="here:1"):
        assert noted(tmp_path, "here:1")
        assert not noted(tmp_path, "here:2")
        assert holder(tmp_path) == f"pid {os.getpid()}"
    with locked(tmp_path, "the store"):
        assert not noted(tmp_path, "here:1")


def test_a_link_in_the_place_of_the_lock_is_refused(tmp_path):
    """A planted .lock does not make the owner's number be written into another file."""
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".lock").symlink_to("precious")
    with pytest.raises(GuidedCDError, match=r"\.lock is a symbolic link"), locked(tmp_path, "the run"):
        pass
    (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").hardlink_to(tmp_path / "precious")
    with locked(tmp_path, "the run"):
        pass

    assert (tmp_path / "precious").read_text() == "precious"


class Bytes(types.ModuleType):
    """Windows' msvcrt as far as locks need it: byte ranges of one file, held by the descriptor that took them."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        super().__init__("msvcrt")
        self.held: dict[int, set[int]] = {}

    def locking(self, descriptor: int, mode: int, count: int) -> None:
        """Take `count` bytes from the descriptor's position on, or raise."""
        start = os.lseek(descriptor, 0, os.SEEK_CUR)
        locked_bytes = set(range(start, start + count))
        if any(locked_bytes & taken for taken in self.held.values()):
            raise OSError(13, "Permission denied")
        self.held.setdefault(descriptor, set()).update(locked_bytes)


def test_windows_locks_bytes(tmp_path, monkeypatch):
    """Without fcntl, msvcrt refuses a second writer, and lets parts of one store be written together."""
    msvcrt = Bytes()
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)
    with locked(tmp_path, "the store"):
        for shared in (False, True):
            with pytest.raises(GuidedCDError, match="another process"), locked(tmp_path, "the store", shared=shared):
                pass
    msvcrt.held.clear()
    with (
        locked(tmp_path, "the store", shared=True),
        locked(tmp_path, "the store", shared=True),
        pytest.raises(GuidedCDError, match="another process"),
        locked(tmp_path, "the store"),
    ):
        pass


POSIX = {"fcntl", "termios", "pwd", "grp", "resource", "tty", "pty"}
"""Modules that Windows lacks."""


def test_no_module_needs_posix(repository):
    """Nothing imports a module that Windows lacks; locks import theirs only if it exists."""
    imported = {}
    for folder in ("guidedcd", "plugins"):
        for path in (repository / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                    if POSIX & {name.partition(".")[0] for name in names}:
                        imported[path.relative_to(repository).as_posix()] = names

    assert imported == {}


def test_files_and_commands_work_without_posix(tmp_path):
    """Help, files and locks work where fcntl and the system calls that Windows lacks are not to be had."""
    code = f"""
import os, shutil, sys
from pathlib import Path
shutil._use_fd_functions = False  # shutil has looked for these system calls already
for name in {sorted(POSIX)!r}:
    sys.modules[name] = None
for name in ("fchmod", "geteuid", "mkfifo", "statvfs", "O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY"):
    vars(os).pop(name, None)
from guidedcd.files import append_text, write_json
from guidedcd.locks import locked
with locked(Path("run"), "the run"):
    write_json(Path("run/a.json"), 1)
    append_text(Path("run/log"), "x")
from guidedcd.cli import main
main(["--help"])
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", "a.json", "log"}
