"""A small process that names the plugin whose import killed this one, as a crash of C code does. No torch here."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

_SCRIPT = (
    'text=; while IFS= read -r line; do [ "$line" = . ] && exit 0; text=$line; done; '
    '[ -z "$text" ] || printf "%s\\n" "$text" >&2'
)
"""Prints the last line that it read if the pipe ends without a line ".", and nothing if that line is empty."""

_pipe: IO[str] | None = None


@contextmanager
def watched() -> Iterator[None]:
    """If this process dies within this block, the last text of `note` is printed to standard error."""
    global _pipe
    if os.name != "posix" or _pipe is not None:
        yield
        return
    try:
        process = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, encoding="utf-8"
        )
    except OSError:  # no shell, or no more processes
        yield
        return
    _pipe = process.stdin
    try:
        yield
    finally:
        note(".")
        pipe, _pipe = _pipe, None
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)


def note(text: str) -> None:
    """The line to print if this process dies from now on; "" for none. Without `watched` it has no effect."""
    if _pipe is not None:
        with contextlib.suppress(OSError, ValueError):
            _pipe.write(text + "\n")
            _pipe.flush()
