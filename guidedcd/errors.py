"""Mistakes of the user: one line on the terminal, exit status 2. Anything else is a bug and keeps its traceback."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from pathlib import Path


class GuidedCDError(Exception):
    """States what is wrong, where, and what to do about it, in one clear sentence."""


class PluginError(GuidedCDError):
    """A plugin cannot be found, loaded or told apart from another."""


def suggest(name: str, known: Iterable[str]) -> str:
    """ " Did you mean 'x'?" for the closest of `known`, or nothing."""
    near = difflib.get_close_matches(name.lower(), list(known), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


class NoPermissionError(GuidedCDError):
    """A file may not be read by this user; it may be sound, so nothing must advise to delete it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived, which batch systems and containers send before they kill: handled exactly as Ctrl-C is."""


def unwritable(error: OSError, path: Path) -> GuidedCDError:
    """The user's sentence for a failed write; other operating system errors keep their own text."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return GuidedCDError(
                f"the disk is full: {path} could not be written. Free some space or choose another folder; "
                "what was finished before is kept, and the same command continues there."
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return GuidedCDError(f"no permission to write {path}. Choose another folder with --out or --store.")
        case errno.ENOTDIR | errno.EEXIST | errno.ENOTEMPTY | errno.EISDIR:
            obstacle = "folder" if error.errno in (errno.ENOTEMPTY, errno.EISDIR) else "file"
            return GuidedCDError(f"{path} cannot be written because a {obstacle} is in the way. Choose another one.")
        case errno.ENAMETOOLONG:
            return GuidedCDError(f"the name {shortened(path)} is too long for this file system. Choose a shorter one.")
        case errno.ELOOP:
            return GuidedCDError(f"{path} is a symbolic link, which is not written through. Remove the link.")
    return GuidedCDError(f"{path} could not be written: {error.strerror or error}.")


def unreadable(error: OSError, path: Path) -> GuidedCDError:
    """The user's sentence for a failed read: a missing file, missing permission, and damage are told apart."""
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return GuidedCDError(f"{path} is missing.")
        case errno.EACCES | errno.EPERM:
            return NoPermissionError(f"no permission to read {path}. The file may be sound: check its permissions.")
        case errno.EISDIR:
            return GuidedCDError(f"{path} is a folder, not a file.")
        case errno.ENAMETOOLONG:
            return GuidedCDError(f"the name {shortened(path)} is too long for this file system.")
    return GuidedCDError(f"{path} cannot be read: {error.strerror or error}.")


def shown(value: object) -> str:
    """A value for a message, as Python writes it, cut in the middle where it is long."""
    try:
        return shortened(repr(value), 60)
    except ValueError:  # a number of more than 4,300 digits
        return "a number that is too large"


def shortened(value: object, length: int = 80) -> str:
    """The text of a value for a message, cut in the middle of a long one."""
    text = str(value)
    return text if len(text) <= length else f"{text[: length // 2]}...{text[-length // 4 :]}"
