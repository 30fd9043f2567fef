"""Files that appear whole or not at all, and the lock that refuses a second writer. No torch."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
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
        for written in [temporary] if temporary.is_file() else [f for f in temporary.rglob("*") if f.is_file()]:
            _settle(written)
        os.replace(temporary, path)
    except GuidedCDError:
        raise
    except Exception as error:
        if (cause := _os_error(error)) is None:
            raise
        raise explained(cause, path) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _settle(path: Path) -> None:
    """Put a file's bytes on the disk, and let others read it as they may any new file: safetensors forbids it."""
    with open(path, "rb+") as handle:
        os.fsync(handle.fileno())
        mask = os.umask(0o077)
        os.umask(mask)
        os.fchmod(handle.fileno(), os.fstat(handle.fileno()).st_mode | (0o666 & ~mask))


def _os_error(error: Exception) -> OSError | None:
    """The operating system's error behind a failed write: safetensors and torch.save hide it in a text or behind."""
    if isinstance(error, OSError):
        return error
    if number := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(number[1]), os.strerror(int(number[1])))
    behind = error.__cause__ or error.__context__
    return behind if isinstance(behind, OSError) and behind.errno in (errno.ENOSPC, errno.EDQUOT) else None


def leftovers(folder: Path, *, seconds: float = 0) -> None:
    """Remove what killed processes left half-written in `folder`, if it is older than so many seconds.

    Only for a folder that no other process writes, or with an age at which none can still be writing.
    """
    for path in folder.glob(".*.part"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime >= seconds:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_writable(folder: Path) -> None:
    """Find out before the work, and not after it, that a folder cannot be written or made; nothing is made.

    Raises:
        GuidedCDError: It cannot.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise explained(OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)), folder)
    if not os.access(there, os.W_OK | os.X_OK):
        raise explained(OSError(errno.EACCES, os.strerror(errno.EACCES)), folder)


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
        case errno.ENOTDIR | errno.EEXIST | errno.ENOTEMPTY:
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


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Where two JSON objects first differ: "train.lr: 0.1 there, 0.2 here"."""
    for key in sorted({*one, *other}):
        mine, theirs = one.get(key), other.get(key)
        if digest(mine) != digest(theirs):
            if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
                return f"{key}.{difference(mine, theirs)}"
            return f"{key}: {_short(mine)} there, {_short(theirs)} here"
    return "nothing"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextlib.contextmanager
def locked(folder: Path, what: str, name: str = ".lock", *, shared: bool = False) -> Iterator[None]:
    """Hold `folder` as its only writer; the lock goes with the process, so a killed one leaves nothing to clean.

    With `shared`, hold it together with others that do so, against those that want it alone.

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
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            raise GuidedCDError(
                f"{what} {folder} is being written by another process ({handle.read().strip() or 'unknown'}). "
                "Wait for it, or choose another folder."
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise explained(error, folder / name) from error
            # A file system without locks, as some clusters have: then nobody can be refused.
        with contextlib.suppress(OSError):  # on a full disk the note is missing, the lock holds
            handle.truncate(0)
            os.write(handle.fileno(), f"pid {os.getpid()}".encode())
        yield
