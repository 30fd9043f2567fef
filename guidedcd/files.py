"""Files that appear whole or not at all, and the lock that refuses a second writer. No torch."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guidedcd.errors import GuidedCDError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and vanishes otherwise.

    Works for files and for folders (a folder must not exist yet under its final name).

    Raises:
        GuidedCDError: The disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_file():
            with open(temporary, "rb+") as handle:
                os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise explained(error, path) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Make `folder`, so that a place that cannot be written is found out before the work and not after it.

    Raises:
        GuidedCDError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explained(error, folder) from error


def explained(error: OSError, path: Path) -> GuidedCDError:
    """The user's sentence for a failed write; other operating system errors keep their own text."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return GuidedCDError(
                f"the disk is full: {path} could not be written. Free some space or choose another folder; "
                "what was finished before is kept, and the same command continues there."
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return GuidedCDError(f"no permission to write {path}. Choose another folder with --out or --store.")
        case errno.ENOTDIR | errno.EEXIST:
            return GuidedCDError(f"{path} cannot be written because a file is in the way. Choose another folder.")
    return GuidedCDError(f"{path} could not be written: {error.strerror or error}.")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        GuidedCDError: The file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GuidedCDError(f"{path} is missing.") from None
    except (ValueError, OSError) as error:
        raise GuidedCDError(f"{path} is damaged and cannot be read as JSON: {error}.") from error


def digest(value: Any) -> str:
    """A short fingerprint of a JSON value: 16 hexadecimal digits of SHA-256."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextlib.contextmanager
def locked(folder: Path, what: str, name: str = ".lock") -> Iterator[None]:
    """Hold `folder` as its only writer; the lock goes with the process, so a killed one leaves nothing to clean.

    Raises:
        GuidedCDError: Another process writes there, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / name, "a+")  # noqa: SIM115 - held for the block
    except OSError as error:
        raise explained(error, folder) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            raise GuidedCDError(
                f"{what} {folder} is being written by another process ({handle.read().strip() or 'unknown'}). "
                "Wait for it, or choose another folder."
            ) from None
        handle.truncate(0)
        handle.write(f"pid {os.getpid()}")
        handle.flush()
        yield
