"""Ctrl-C and SIGTERM stop training after a whole step, which is the same step in all processes of a launch."""

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
"""A launcher forwards a signal that its processes have received already: within this time it is the same request."""
AHEAD = 2
"""Processes stop this many steps after the step in which the first of them received a signal. No process has begun a
later step by then: each step needs all processes, and reads the numbers of the step before the last one."""
_KEY = "guidedcd/stop_after"


class Stop:
    """Set by the first signal; the training loop then finishes its step, saves, and stops."""

    def __init__(self) -> None:
        self.signal: int | None = None
        """The number of the first signal."""
        self._received_at = 0.0
        self._store = _process_store()

    @property
    def is_set(self) -> bool:
        """Whether this process has received a signal."""
        return self.signal is not None

    def after(self, step: int) -> bool:
        """Whether to stop after `step`, the same in every process; to be called once in each step."""
        if self._store is None:
            return self.is_set
        if not self.is_set and not self._store.check([_KEY]):
            return False
        agreed = self._store.compare_set(_KEY, "", str(step + AHEAD))
        return step >= int(agreed)

    def exception(self) -> KeyboardInterrupt:
        """What to raise once everything is saved."""
        return Terminated() if self.signal == signal.SIGTERM else KeyboardInterrupt()

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: the first sets this object, and a later Ctrl-C stops at once."""
        now = time.monotonic()
        if not self.is_set:
            self.signal, self._received_at = number, now
            console.print("stopping after this step; press Ctrl-C again to stop at once")
        elif number == signal.SIGINT and now - self._received_at > REPEATED_SECONDS:
            signal.default_int_handler(number, frame)


def _process_store() -> Any:
    """The key-value store that the processes of this launch share, or None for a single process.

    Its class is torch's own and is not public.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    if torch.distributed.get_world_size() == 1:
        return None
    return torch.distributed.distributed_c10d._get_default_store()


@contextmanager
def interruptible() -> Iterator[Stop]:
    """Let the first Ctrl-C or SIGTERM wait for the end of a step; a second Ctrl-C stops at once."""
    stop = Stop()
    handlers: dict[signal.Signals, Any] = {}  # as `signal.signal` returns and takes them
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            handlers[number] = signal.signal(number, stop.handle)
    except ValueError:  # outside of the main thread there are no signals
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
