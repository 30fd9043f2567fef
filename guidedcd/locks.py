"""Locks that refuse a second writer. They go with the process: a killed one leaves nothing to clean. No torch."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guidedcd.errors import GuidedCDError, unwritable

UNAVAILABLE = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL)
"""Errors of file systems that have no locks, as some clusters': then nobody can be refused."""
_FIRST, _PLACES = 2**30, 64
"""Windows locks bytes and knows no shared locks: a shared lock takes one of these bytes, an exclusive one all."""


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
    choices = [(place, 1) for place in range(_PLACES)] if shared else [(0, _PLACES)]
    for place, count in choices:
        os.lseek(descriptor, _FIRST + place, os.SEEK_SET)
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
            return handle.read(40).decode(errors="replace").strip() or "unknown"
        except OSError:
            return None
    return None


@contextlib.contextmanager
def locked(folder: Path, what: str, name: str = ".lock", *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold `folder` as its only writer.

    With `shared`, hold it together with others that do so, against those that want it alone.

    Args:
        folder: It is made where it is missing.
        what: What it is, for messages: "the run".
        name: The file in it that is locked; a link of that name is refused.
        shared: See above.
        wait: Wait for another process instead of refusing; for work that takes a moment.

    Raises:
        GuidedCDError: Another process writes there, or the folder cannot be written.
    """
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
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise GuidedCDError(f"{folder / name} is no regular file, so {what} cannot be locked. Remove it.")
        try:
            while True:
                try:
                    lock(descriptor, shared=shared)
                    break
                except BlockingIOError:
                    if not wait:
                        raise
                    time.sleep(0.05)
        except BlockingIOError:
            owner = handle.read(40).decode(errors="replace").strip() or "unknown"
            raise GuidedCDError(
                f"{what} {folder} is being written by another process ({owner}). Wait for it, or choose another folder."
            ) from None
        except OSError as error:
            if error.errno not in UNAVAILABLE:
                raise unwritable(error, folder / name) from error
        if about.st_nlink == 1:  # a second name of another file is locked, and not written to
            with contextlib.suppress(OSError):  # on a full disk the note is missing, the lock holds
                handle.truncate(0)
                handle.seek(0)
                handle.write(f"pid {os.getpid()}".encode())
        yield
