"""Locks: a second writer is refused, or waits. A lock goes with its process, also with a killed one. No torch."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from guidedcd.errors import GuidedCDError, unwritable

UNAVAILABLE = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL)
"""Errors of file systems that have no locks, as some clusters': then nobody can be refused."""
_FIRST, _PLACES = 2**30, 64
"""Windows locks bytes and has no shared locks: a shared lock takes one of these bytes, an exclusive one all."""


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def lock(descriptor: int, *, shared: bool = False) -> None:
    """Lock an open file or folder without waiting; closing it unlocks it.

    Raises:
        BlockingIOError: Another process holds it.
        OSError: Locks are not to be had, see `UNAVAILABLE`.
    """
    if (fcntl := _optional("fcntl")) is not None:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    elif (msvcrt := _optional("msvcrt")) is not None:
        _lock_bytes(msvcrt, descriptor, shared)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def _lock_bytes(msvcrt: Any, descriptor: int, shared: bool) -> None:
    choices = [(offset, 1) for offset in range(_PLACES)] if shared else [(0, _PLACES)]
    for offset, count in choices:
        os.lseek(descriptor, _FIRST + offset, os.SEEK_SET)
        with contextlib.suppress(OSError):
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, count)
            os.lseek(descriptor, 0, os.SEEK_SET)
            return
    os.lseek(descriptor, 0, os.SEEK_SET)
    raise BlockingIOError(errno.EACCES, os.strerror(errno.EACCES))


def holder(folder: Path, name: str = ".lock") -> str | None:
    """The process that holds `folder` with `locked`, such as "pid 123", or None where none does.

    Args:
        folder: The folder.
        name: The file in it that is locked.
    """
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None
    with open(descriptor, "rb", buffering=0) as handle:
        try:
            lock(descriptor, shared=True)
        except BlockingIOError:
            return _owner(handle)
        except OSError:
            return None
    return None


Waiting = Callable[[str, float], None]
"""Called while a lock is waited for, with its holder, such as "pid 123", and the seconds waited so far."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 0.5
"""Seconds between two attempts to lock."""


@contextlib.contextmanager
def locked(
    folder: Path,
    what: str,
    name: str = ".lock",
    *,
    shared: bool = False,
    wait: bool | Waiting = False,
    note: str = "",
) -> Iterator[None]:
    """Hold `folder` as its only writer.

    With `shared`, hold it together with others that do so, against those that want it alone.

    Args:
        folder: It is made where it is missing.
        what: What it is, for messages: "the run".
        name: The file in it that is locked; a link of that name is refused.
        shared: See above.
        wait: Wait for another process instead of refusing: for work that takes a moment, or with a function that shows
            what is waited for.
        note: A line that `noted` reads, for processes that were started together with this one.

    Raises:
        GuidedCDError: Another process writes there, or the folder cannot be written.
    """
    began = time.monotonic()
    while True:
        with _opened(folder, what, name) as handle:
            try:
                _acquire(handle, shared, wait, began)
            except BlockingIOError:
                raise GuidedCDError(
                    f"{what} {folder} is being written by another process ({_owner(handle)}). Wait for it, or choose "
                    "another folder."
                ) from None
            except OSError as error:
                if error.errno not in UNAVAILABLE:
                    raise unwritable(error, folder / name) from error
            if not _is_in_place(handle, folder / name):
                continue  # whoever held it has deleted the folder
            if os.fstat(handle.fileno()).st_nlink == 1:  # a second name of another file is not written to
                with contextlib.suppress(OSError):  # on a full disk the note is missing, the lock holds
                    handle.truncate(0)
                    handle.seek(0)
                    handle.write(f"pid {os.getpid()}\n{note}".rstrip().encode())
            yield
            return


def noted(folder: Path, note: str, name: str = ".lock") -> bool:
    """Whether a process that gave `locked` this note was the last to hold `folder`; true where it cannot be noted."""
    try:
        with open(folder / name, "rb") as handle:
            is_note = handle.read(_NOTE_BYTES).decode(errors="replace").partition("\n")[2] == note
            return is_note or os.fstat(handle.fileno()).st_nlink > 1
    except OSError:
        return False


_NOTE_BYTES = 400


def _owner(handle: FileIO) -> str:
    handle.seek(0)
    return handle.read(40).decode(errors="replace").partition("\n")[0].strip() or "unknown"


@contextlib.contextmanager
def _opened(folder: Path, what: str, name: str) -> Iterator[FileIO]:
    """The file that is locked; it is made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(error, folder) from error
    try:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(folder / name, flags, 0o666)
    except OSError as error:
        raise unwritable(error, folder / name if os.path.lexists(folder / name) else folder) from error
    with open(descriptor, "r+b", buffering=0) as handle:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise GuidedCDError(f"{folder / name} is no regular file, so {what} cannot be locked. Remove it.")
        yield handle


def _acquire(handle: FileIO, shared: bool, wait: bool | Waiting, began: float) -> None:
    pause = _FIRST_PAUSE
    while True:
        try:
            lock(handle.fileno(), shared=shared)
            return
        except BlockingIOError:
            if wait is False:
                raise
        if callable(wait):
            wait(_owner(handle), time.monotonic() - began)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _is_in_place(handle: FileIO, path: Path) -> bool:
    """Whether an open file still is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
