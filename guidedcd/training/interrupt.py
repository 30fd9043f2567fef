"""Ctrl-C and SIGTERM that let a step end, in all processes of a launch after the same step."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from guidedcd.console import console
from guidedcd.errors import Terminated

REPEATED_SECONDS = 1.0
"""A launcher hands on a signal that its processes have had already: within this time it is the same request."""
AHEAD = 2
"""Processes stop so many steps after the one in which the first of them was asked: none has begun a later one, since
each step needs all of them and at most one step is computed before the numbers of the one before are read."""
_KEY = "guidedcd/stop_after"


class Stop:
    """Set by the first signal; the loop finishes its step, saves, and stops."""

    def __init__(self) -> None:
        self.signal: int | None = None
        """The signal that came."""
        self._asked_at = 0.0
        self._store = _process_store()

    @property
    def is_set(self) -> bool:
        """Whether this process was asked to stop."""
        return self.signal is not None

    def after(self, step: int) -> bool:
        """Whether to stop after `step`, which is the same in every process; to be called once a step."""
        if self._store is None:
            return self.is_set
        if not self.is_set and not self._store.check([_KEY]):
            return False
        agreed = self._store.compare_set(_KEY, "", str(step + AHEAD))
        return step >= int(agreed)

    def exception(self) -> KeyboardInterrupt:
        """What to raise once everything is saved."""
        return Terminated() if self.signal == signal.SIGTERM else KeyboardInterrupt()

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: the first is remembered, and only a later Ctrl-C stops at once."""
        now = time.monotonic()
        if not self.is_set:
            self.signal, self._asked_at = number, now
            console.print("stopping after this step; press Ctrl-C again to stop at once")
        elif number == signal.SIGINT and now - self._asked_at > REPEATED_SECONDS:
            signal.default_int_handler(number, frame)


def _process_store() -> Any:
    """The key-value store that the processes of this launch share, or None for a single process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    if torch.distributed.get_world_size() == 1:
        return None
    return torch.distributed.distributed_c10d._get_default_store()


@contextmanager
def interruptible() -> Iterator[Stop]:
    """Let the first Ctrl-C or SIGTERM wait for the end of a step; a second Ctrl-C stops at once."""
    stop = Stop()
    before: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, stop.ask)
    except ValueError:  # not in the main thread: nobody can press Ctrl-C here
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
