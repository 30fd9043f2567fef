"""Ctrl-C that lets a step end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from guidedcd.console import console


class Stop:
    """Set by the first Ctrl-C; the loop finishes its step, saves, and stops."""

    is_set = False


@contextmanager
def interruptible() -> Iterator[Stop]:
    """Let the first Ctrl-C wait for the end of a step; the second stops at once."""
    stop = Stop()

    def ask(number: int, frame: object) -> None:
        if stop.is_set:
            signal.default_int_handler(number, frame)
        stop.is_set = True
        console.print("stopping after this step; press Ctrl-C again to stop at once")

    try:
        before = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not in the main thread: nobody can press Ctrl-C here
        yield stop
        return
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
