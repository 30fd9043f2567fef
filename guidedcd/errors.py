"""Mistakes of the user: one line on the terminal, exit status 2. Anything else is a bug and keeps its traceback.

Messages are written with flags, "--train.batch-size 2". A Python program gets them with the names of Python,
"`train.batch_size=2`".
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_on_command_line = False
"""Whether options are spelled as flags, see `on_command_line`."""


@contextmanager
def on_command_line() -> Iterator[None]:
    """Within this context messages name options by their flags; everywhere else as Python does."""
    global _on_command_line
    before, _on_command_line = _on_command_line, True
    try:
        yield
    finally:
        _on_command_line = before


_OPTION = re.compile(
    r"(?P<as_it_is>`[^`]*`|(?:guidedcd|python -m|hf download) [^`]*)"
    r"|(?<![\w/.'\"-])--(?P<path>[a-z][a-z0-9]*(?:[.-]\w+)*(?::[^\s.,;()]+(?:[.-]\w+)+)?)"
    r"(?:[ =](?P<value>\d+(?:\.\d+)*(?!\S*\w)|(?!or\b|and\b)[\w:./,-]*\w(?=$|[.,;:)]+(?:\s|$)| or | and )))?"
)
"""A flag in a message, with its value where the sentence ends or pauses after it; commands and code spans stay."""

_BY_NAME = ("teacher", "data", "energies", "rewards", "routes", "metrics", "suite")
"""Options of components: the second part of their paths is a component's name, which keeps its "-"."""


def option_name(name: str) -> str:
    """A field as users write it: "batch-size" on the command line, "batch_size" in Python."""
    return name.replace("_", "-") if _on_command_line else name


def with_option_names(message: str) -> str:
    """A message whose flags are replaced by the names of Python, unless a command is running."""
    return message if _on_command_line else _OPTION.sub(_in_python, message)


def written(flags: str) -> str:
    """Flags with their values, "--train.steps 2 --seed 1", as they are written here: in Python separated by commas."""
    return flags if _on_command_line else ", ".join(map(with_option_names, re.split(r" (?=--)", flags)))


def _in_python(match: re.Match[str]) -> str:
    if match["as_it_is"] is not None:
        return match[0]
    parts = match["path"].split(".")
    kept = 1 if parts[0] in _BY_NAME else None
    name = ".".join(part if index == kept else part.replace("-", "_") for index, part in enumerate(parts))
    value = {"true": "True", "false": "False"}.get(match["value"] or "", match["value"])
    if name == "plugin":  # a Python program has no such argument, but the environment variable
        return f"`GUIDEDCD_PLUGINS={match['value']}`" if match["value"] else "`GUIDEDCD_PLUGINS`"
    if name == "new":
        value = value or "True"
    if value is None:
        return f"`{name}`"
    plain = re.fullmatch(r"True|False|-?\d+(\.\d+)?", value)
    return f"`{name}={value}`" if plain else f'`{name}="{value}"`'


class GuidedCDError(Exception):
    """States what is wrong, where, and what to do about it, in one clear sentence."""

    def __init__(self, *args: object) -> None:
        """Take the message, in which options are flags."""
        super().__init__(*(with_option_names(arg) if isinstance(arg, str) else arg for arg in args))


class NeedError(GuidedCDError):
    """A teacher cannot record what an energy needs; the engine adds which energies those are."""

    def __init__(self, message: str, *, need: str) -> None:
        """Take the message, and the entry of the energy's `needs`, such as "temporal-attention:official"."""
        super().__init__(message)
        self.need = need


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


_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.part")
"""The name of a temporary folder (`guidedcd.files.replacing`); errors name the final path."""


def unwritable(error: OSError, path: Path) -> GuidedCDError:
    """The user's sentence for a failed write; other operating system errors keep their own text."""
    path = Path(*(part for part in path.parts if not _TEMPORARY.fullmatch(part)))
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return GuidedCDError(
                f"the disk is full: {path} could not be written. Free some space or choose another folder; "
                "what was finished before is kept, and the same command continues there."
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return GuidedCDError(f"no permission to write {path}. Change its permissions, or write to another folder.")
        case errno.ENOTDIR | errno.EEXIST | errno.ENOTEMPTY | errno.EISDIR:
            obstacle = "folder" if error.errno in (errno.ENOTEMPTY, errno.EISDIR) else "file"
            return GuidedCDError(f"{path} cannot be written because a {obstacle} is in the way. Choose another name.")
        case errno.ENAMETOOLONG:
            return GuidedCDError(f"the name {shortened(path)} is too long for this file system. Choose a shorter one.")
        case errno.ELOOP:
            return GuidedCDError(f"{path} is a symbolic link, which is not written through. Remove the link.")
    return GuidedCDError(f"{path} could not be written: {error.strerror or error}. Choose another place.")


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


def refusal(where: str, value: object, requirement: str) -> str:
    """The sentence for a value that is not accepted: "--train.steps is 0; it must be at least 1."."""
    return f"{where} is {shown(value)}; it must be {requirement}."


def described(error: BaseException) -> str:
    """The type of an exception and its text, "ValueError: no licence", cut where it is long."""
    try:
        text = str(error)
    except Exception:  # a plugin's own exception may be faulty too
        text = "its text cannot be read"
    return f"{type(error).__name__}: {shortened(text, 1000)}" if text else type(error).__name__


def shortened(value: object, length: int = 80) -> str:
    """The text of a value for a message, cut in the middle of a long one."""
    text = str(value)
    return text if len(text) <= length else f"{text[: length // 2]}...{text[-length // 4 :]}"
