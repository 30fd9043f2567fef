"""JSON and TOML files, read with a check of their form: what is malformed becomes one sentence. No torch.

A form describes what a value must be: a type (`float` accepts whole numbers and must be finite; `bool` is no number),
`Any`, a list `[form]`, a mapping `{str: form}`, a record `{"key": form, "optional?": form}` that may have further
keys, or alternatives as a tuple of forms; None stands for itself.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

from guidedcd.errors import GuidedCDError, shortened, shown, unreadable

LARGEST = 64 * 2**20
"""Bytes of the largest document that is read."""

MOST_PARTS = 64
"""Parts of a dotted TOML key; the time of the parser grows with their square."""

_PART = r"""(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*"""
_LONG_KEY = re.compile(rf"""(?<![\w."'-])(?:{_PART}){{{MOST_PARTS}}}""")

_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object"}


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file to read its bytes. A named pipe would wait for a writer, and a device may never end.

    Raises:
        OSError: It cannot be opened.
        GuidedCDError: It is a device, pipe or socket.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise GuidedCDError(f"{path} is a device or pipe, not a file.")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_text(path: Path, largest: int = LARGEST, *, missing: str | None = None) -> str:
    """The text of a regular file of at most `largest` bytes.

    Args:
        path: The file.
        largest: Bytes of the largest file that is read.
        missing: The error's sentence if there is no such file, instead of a general one.

    Raises:
        GuidedCDError: It is missing, may not be read, is no regular file, is too large, or is not UTF-8.
    """
    try:
        with open_regular(path) as handle:
            size = os.fstat(handle.fileno()).st_size
            if size > largest:
                raise GuidedCDError(f"{path} has {size:,} bytes; at most {largest:,} are read.")
            return handle.read().decode("utf-8-sig")
    except OSError as error:
        if missing is not None and isinstance(error, FileNotFoundError):
            raise GuidedCDError(missing) from None
        raise unreadable(error, path) from None
    except ValueError:  # UnicodeDecodeError, or a path with a null byte
        raise GuidedCDError(f"{path} is no UTF-8 text.") from None


def parse_json(text: str, where: object) -> Any:
    """The value of a JSON text.

    Raises:
        GuidedCDError: It is malformed, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise GuidedCDError(f"{where} is damaged: its JSON is nested too deeply.") from None
    except ValueError as error:
        raise GuidedCDError(f"{where} is damaged and cannot be read as JSON: {_cause(error)}.") from None


def read_json(path: Path, form: Any = Any, *, largest: int = LARGEST) -> Any:
    """The value of a JSON file.

    Raises:
        GuidedCDError: The file is missing, unreadable, malformed, or has another form than `form`.
    """
    value = parse_json(read_text(path, largest), path)
    check_form(value, form, path)
    return value


def read_toml(path: Path) -> dict[str, Any]:
    """The table of a TOML file.

    Raises:
        GuidedCDError: The file is missing, unreadable or malformed.
    """
    text = read_text(path)
    if long := _LONG_KEY.search(text):
        line = text.count("\n", 0, long.start()) + 1
        raise GuidedCDError(f"{path} is malformed: the key in line {line} has more than {MOST_PARTS} parts.")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise GuidedCDError(f"{path} is malformed: it is nested too deeply.") from None
    except ValueError as error:  # names line and column
        raise GuidedCDError(f"{path} is malformed: {_cause(error)}.") from None


def _cause(error: ValueError) -> str:
    """A parser's words, but for Python's own about numbers of more than 4,300 digits."""
    text = str(error)
    return "it has a number of too many digits" if "integer string conversion" in text else text


def check_form(value: Any, form: Any, where: object) -> None:
    """Compare a value with a form, see the module's docstring.

    Raises:
        GuidedCDError: It differs; names the place, e.g. "run.json: train.optimizer.lr is 'x'; it must be a number".
    """
    if mistake := _mistake(value, form, ""):
        place, expected, actual = mistake
        inside = f": {place}" if place else ""
        if actual is _ABSENT:
            raise GuidedCDError(f"{where}{inside} is missing. The file is damaged.")
        verb = "is" if place else "contains"
        must = "be" if place else "contain"
        raise GuidedCDError(f"{where}{inside} {verb} {_shown(actual)}; it must {must} {expected}. The file is damaged.")


def _mistake(value: Any, form: Any, place: str) -> tuple[str, str, Any] | None:
    """Where `value` first differs from `form`: (place, what is expected, the value there)."""
    if form is Any or (form is None and value is None):
        return None
    if isinstance(form, tuple):
        mistakes = [mistake for one in form if (mistake := _mistake(value, one, place))]
        return max(mistakes, key=lambda mistake: len(mistake[0])) if len(mistakes) == len(form) else None
    if isinstance(form, list):
        if not isinstance(value, list):
            return place, "a list", value
        return _first((one, form[0], f"{place}[{number}]") for number, one in enumerate(value))
    if isinstance(form, Mapping):
        if not isinstance(value, dict):
            return place, "an object", value
        if str in form:
            return _first((one, form[str], _joined(place, key)) for key, one in value.items())
        for key, one in form.items():
            name = key.removesuffix("?")
            if name not in value:
                if key == name:
                    return _joined(place, name), "", _ABSENT
            elif mistake := _mistake(value[name], one, _joined(place, name)):
                return mistake
        return None
    return None if _is(value, form) else (place, _NAMES.get(form, "null"), value)


def _first(checks: Any) -> tuple[str, str, Any] | None:
    return next((mistake for check in checks if (mistake := _mistake(*check))), None)


def is_number(value: Any) -> bool:
    """Whether a value of a document is a finite number; true and false are none."""
    return _is(value, float)


def _is(value: Any, kind: Any) -> bool:
    if kind is None:
        return False
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if kind is int:
            return isinstance(value, int)
        try:
            return math.isfinite(float(value))
        except OverflowError:
            return False
    return isinstance(value, kind)


def _joined(place: str, key: str) -> str:
    key = shortened(key, 40)
    return f"{place}.{key}" if place else key


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


_ABSENT = _Absent()


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    return shown(value)
