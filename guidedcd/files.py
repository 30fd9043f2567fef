"""Files that appear whole or not at all, one rule for their names, and fingerprints. No torch.

Everything is written under a temporary name beside its own, in a folder that is made for it: no link planted there is
followed. That folder is locked while its process lives, so that the next command can remove what a killed one left.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from guidedcd import locks
from guidedcd.documents import open_regular
from guidedcd.errors import GuidedCDError, shortened, unwritable

LONGEST_NAME = 255
"""Bytes of the longest name of a file or folder on the usual file systems."""
ABANDONED_SECONDS = 600.0
"""Where folders cannot be locked, temporary ones of this age are no longer being written."""

UNLOCKED_SECONDS = 0.5
"""A folder may be this old before its process has locked it."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` when the block ends well, and vanishes otherwise.

    Works for files and for folders (a folder must not exist yet under its final name). A link at `path` is replaced,
    not followed. The temporary path has the same name in a new folder beside `path`.

    Raises:
        GuidedCDError: The disk is full, the name is too long, a device is in the way, or the folder cannot be written.
    """
    check_name(path)
    folder: Path | None = None
    try:
        _check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _clean_once(path.parent)
        with _private_folder(path.parent) as folder:
            temporary = folder / path.name
            yield temporary
            _settle(temporary)
            os.replace(temporary, path)
            sync_folder(path.parent)
    except GuidedCDError:
        raise
    except Exception as error:
        if (cause := _os_error(error)) is None:
            raise
        raise unwritable(cause, path) from error


@contextlib.contextmanager
def _private_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent` that no other process uses, removed at the end with all its contents."""
    folder = parent / f".{secrets.token_hex(8)}.part"
    descriptor = None
    try:
        folder.mkdir(mode=0o700)
        with contextlib.suppress(OSError):  # Windows opens no folders, and some file systems lock none
            descriptor = os.open(folder, os.O_RDONLY)
            locks.lock(descriptor)
        yield folder
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        except KeyboardInterrupt:  # a signal in the middle of it
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            if descriptor is not None:
                os.close(descriptor)


def _check_replaceable(path: Path) -> None:
    """Refuse to put a file in the place of a device, a pipe or a socket."""
    with contextlib.suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
            raise GuidedCDError(f"{path} is a device, pipe or socket and is not replaced. Choose another name.")


def _settle(path: Path) -> None:
    """Put a new file or folder on the disk, and let others read it as they may any new file: safetensors forbids it."""
    for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
        with open(file, "rb+") as handle:
            os.fsync(handle.fileno())
        file.chmod(file.stat().st_mode | (0o666 & ~_umask()))
    if path.is_dir():
        for folder in (path, *(folder for folder in path.rglob("*") if folder.is_dir())):
            sync_folder(folder)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Put a folder's names on the disk, where the system can: a rename survives a loss of power only then."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _os_error(error: Exception) -> OSError | None:
    """The operating system's error behind a failed write: safetensors and torch.save hide it in a text or behind."""
    if isinstance(error, OSError):
        return error
    if number := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(number[1]), os.strerror(int(number[1])))
    behind = error.__cause__ or error.__context__
    return behind if isinstance(behind, OSError) and behind.errno in (errno.ENOSPC, errno.EDQUOT) else None


_CLEANED: set[Path] = set()


def _clean_once(folder: Path) -> None:
    """Remove what killed processes left in `folder`, at this process's first write there."""
    folder = folder.absolute()
    if folder not in _CLEANED:
        _CLEANED.add(folder)
        leftovers(folder)


def leftovers(folder: Path) -> None:
    """Remove temporary files and folders that no living process holds."""
    for path in folder.glob(".*.part"):
        with contextlib.suppress(OSError):
            if path.is_symlink():
                path.unlink()
            elif _abandoned(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _abandoned(path: Path) -> bool:
    """Whether the process that made a temporary file or folder has ended."""
    descriptor = None
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        locks.lock(descriptor)
    except BlockingIOError:
        return False
    except OSError:
        return _age(path) >= ABANDONED_SECONDS
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return _age(path) >= UNLOCKED_SECONDS


def _age(path: Path) -> float:
    return abs(time.time() - path.stat().st_mtime)


def path_name(name: str) -> str:
    """A component's name as a part of a path, on Windows too: `energy:dynamics` becomes `energy_dynamics`."""
    return re.sub(r"[^\w.-]+", "_", name)[:60]


def check_name(path: Path) -> None:
    """Refuse names that the usual file systems cannot store.

    Raises:
        GuidedCDError: A part of the path is longer than 255 bytes, or has a null byte or bytes that are no text.
    """
    for name in path.parts:
        try:
            size = len(name.encode("utf-8"))
        except UnicodeEncodeError:
            raise GuidedCDError(f"the name {shortened(ascii(name))} is no UTF-8 text. Choose another name.") from None
        if size > LONGEST_NAME:
            raise GuidedCDError(
                f"the name '{shortened(name)}' has {size} bytes; a file's or folder's name has at most "
                f"{LONGEST_NAME}. Choose a shorter one."
            )
        if "\0" in name:
            raise GuidedCDError(f"the name {shortened(ascii(name))} has a null byte. Choose another name.")


def check_writable(folder: Path) -> None:
    """Find out before the work, and not after it, that a folder cannot be written or made; nothing is made.

    Raises:
        GuidedCDError: It cannot.
    """
    check_name(folder)
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise unwritable(OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)), folder)
    if not os.access(there, os.W_OK | os.X_OK):
        raise unwritable(OSError(errno.EACCES, os.strerror(errno.EACCES)), folder)


def nearest_folder(folder: Path) -> Path:
    """The folder itself, or the nearest existing folder above it, on whose disk it would be created."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def append_text(path: Path, text: str) -> None:
    """Append to a file, at once on the system's side; a link is not followed.

    Raises:
        GuidedCDError: It cannot be written.
    """
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        with open(os.open(path, flags, 0o666), "a", encoding="utf-8") as handle:
            handle.write(text)
    except OSError as error:
        raise unwritable(error, path) from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def child_environment() -> dict[str, str]:
    """The environment for a Python of this program's own: start it with `-P`, and no relative folder has modules."""
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = os.pathsep.join(folder for folder in folders if os.path.isabs(folder))
    return {**os.environ, "PYTHONPATH": kept, "PYTHONSAFEPATH": "1"}


def digest(value: Any) -> str:
    """A short fingerprint of a JSON value: 16 hexadecimal digits of SHA-256."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Where two JSON objects first differ: "train.optimizer.lr: 0.1 there, 0.2 here"."""
    for key in sorted({*one, *other}):
        first, second = one.get(key), other.get(key)
        if digest(first) != digest(second):
            if isinstance(first, Mapping) and isinstance(second, Mapping):
                return f"{key}.{difference(first, second)}"
            return f"{key}: {_short(first)} there, {_short(second)} here"
    return "nothing"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        OSError: It cannot be read.
        GuidedCDError: It is a device, pipe or socket.
    """
    with open_regular(path) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
