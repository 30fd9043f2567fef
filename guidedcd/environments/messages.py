"""Lines of JSON through the pipes of a process, each before a deadline."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import time
from typing import Any

LONGEST = 2**20
"""Bytes of the longest line that is read."""
TICK = 1.0
"""Seconds between two looks whether the process still runs: its children may keep its pipes open."""


class SilenceError(Exception):
    """The process neither answered nor ended before the deadline."""


class EndedError(Exception):
    """The process ended."""


class GarbledError(Exception):
    """The process wrote something that is no JSON object."""


class Messages:
    """The two ends of a process's pipes in this process. One thread at a time may use them."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """Take the pipes of `process`, whose input must not block."""
        assert process.stdin is not None and process.stdout is not None
        self._process = process
        self._input, self._output = process.stdin.fileno(), process.stdout.fileno()
        os.set_blocking(self._input, False)
        self._buffer = b""

    def send(self, message: dict[str, Any], deadline: float) -> None:
        """Write one line before `deadline`, in seconds of `time.monotonic`.

        Raises:
            SilenceError: The process read too little of it.
            EndedError: The process ended.
        """
        data = memoryview(json.dumps(message).encode() + b"\n")
        while data:
            self._wait(self._input, selectors.EVENT_WRITE, deadline)
            try:
                data = data[os.write(self._input, data) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise EndedError from None

    def receive(self, deadline: float) -> dict[str, Any]:
        """The next line before `deadline`, as a JSON object.

        Raises:
            SilenceError: There is none in time.
            EndedError: The process ended, perhaps within a line.
            GarbledError: The line is no JSON object, or too long.
        """
        while b"\n" not in self._buffer:
            if len(self._buffer) > LONGEST:
                raise GarbledError(self._buffer[:100])
            self._wait(self._output, selectors.EVENT_READ, deadline)
            piece = os.read(self._output, 65536)
            if not piece:
                raise EndedError
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise GarbledError(line[:100]) from None
        if not isinstance(message, dict):
            raise GarbledError(line[:100])
        return message

    def _wait(self, descriptor: int, event: int, deadline: float) -> None:
        """Return when `descriptor` is ready; what a dead process has written is still read."""
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, event)
            while True:
                running = self._process.poll() is None
                if selector.select(max(0.0, min(TICK, deadline - time.monotonic())) if running else 0):
                    return
                if not running:
                    raise EndedError
                if time.monotonic() >= deadline:
                    raise SilenceError
