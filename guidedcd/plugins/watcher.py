"""A small process that names the plugin whose import killed this one, as a crash of C code does. No torch here."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

_SCRIPT = (
    'text=; while IFS= read -r line; do [ "$line" = . ] && exit 0; text=$line; done; '
    '[ -z "$text" ] || printf "%s\\n" "$text" >&2'
)
"""Prints the last line that it read if the pipe ends without a line ".", and nothing if that line is empty."""

_is_watched = False
_process: subprocess.Popen[str] | None = None


@contextmanager
def watched() -> Iterator[None]:
    """If this process dies within this block, the last text of `note` is printed to standard error.

    The first text starts the process that prints, which takes some milliseconds.
    """
    global _is_watched, _process
    if os.name != "posix" or _is_watched:
        yield
        return
    _is_watched = True
    try:
        yield
    finally:
        note(".")
        process, _process, _is_watched = _process, None, False
        if process is not None:
            with contextlib.suppress(OSError):
                if process.stdin is not None:
                    process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)


def note(text: str) -> None:
    """The line to print if this process dies from now on; "" for none. Without `watched` it has no effect."""
    global _process, _is_watched
    if not _is_watched or (_process is None and text in ("", ".")):
        return
    if _process is None:
        try:
            _process = subprocess.Popen(
                ["/bin/sh", "-c", _SCRIPT],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
            )
        except OSError:  # no shell, or no more processes
            _is_watched = False
            return
    if _process.stdin is not None:
        with contextlib.suppress(OSError, ValueError):
            _process.stdin.write(text + "\n")
            _process.stdin.flush()
