"""Importing a plugin's code: it cannot end the program, print into results, or block silently. No torch here."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

import attrs

SLOW = 1.5
"""Seconds above which the import of a plugin is reported: every command waits for it."""

LONGEST = 300
"""Characters of a plugin's output that are repeated: a warning begins with the path of its file."""

PATIENCE = 5.0
"""Seconds after which a command names the plugin that it is waiting for."""

_PATCHES = threading.RLock()
"""Held while `os._exit`, `sys.stdout` or `sys.stderr` is replaced, so that threads restore them in the right order."""

_REPLACED: list[Any] = []
"""Streams that plugins put in the place of ours: the destructor of one over the same buffer would close the buffer."""


@attrs.define
class Import:
    """What the import of a plugin did besides defining names."""

    seconds: float = 0.0
    output: str = ""
    """What it printed, to standard output or standard error."""

    def complaints(self) -> list[str]:
        """A sentence for each thing that an import must not do."""
        sentences = []
        if self.seconds > SLOW:
            sentences.append(
                f"importing it takes {self.seconds:.1f} s, which every command waits for; move slow code to the module "
                "named in the target"
            )
        if text := " ".join(self.output.split()):
            shown = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
            sentences.append(f"importing it prints {shown!r}; results such as JSON must not be mixed with it")
        return sentences


class _Recorder:
    """A stream that records text while a plugin is imported, and passes it on afterwards.

    A handler of `logging` that the plugin creates keeps the stream.
    """

    def __init__(self, stream: TextIO, texts: list[str]) -> None:
        self._stream, self._texts, self._records = stream, texts, True

    def write(self, text: str) -> int:
        """Record `text`, or write it."""
        if not self._records:
            return self._stream.write(text)
        self._texts.append(text)
        return len(text)

    def stop(self) -> None:
        """Pass all further text on."""
        self._records = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def printing_to_stderr() -> Iterator[None]:
    """Within this block `print` writes to standard error, because results such as JSON are on standard output."""
    with _PATCHES:
        before, sys.stdout = sys.stdout, sys.stderr
        try:
            yield
        finally:
            _restore(before, sys.stderr)


def _restore(stdout: TextIO, stderr: TextIO) -> None:
    """Set the streams, and keep those that they replace."""
    _REPLACED.extend(
        stream
        for stream in (sys.stdout, sys.stderr)
        if stream not in (stdout, stderr, *_REPLACED) and not isinstance(stream, _Recorder)
    )
    sys.stdout, sys.stderr = stdout, stderr


@contextmanager
def isolated(plugin: str, block: str) -> Iterator[Import]:
    """Import a plugin's code in this block: its output is recorded, its time measured, and `os._exit` is an error.

    After some seconds, and if the user interrupts the import, a message names the plugin.

    Args:
        plugin: Its id, "distribution/entry-point".
        block: Name of the environment variable that blocks plugins.

    Raises:
        SystemExit: The code called `os._exit`.
    """
    with _PATCHES:
        yield from _isolated(plugin, block)


def _isolated(plugin: str, block: str) -> Iterator[Import]:
    texts: list[str] = []
    active = True
    record, began, exit_, parent = Import(), time.perf_counter(), os._exit, os.getpid()
    streams, recorders = (sys.stdout, sys.stderr), [_Recorder(sys.stdout, texts), _Recorder(sys.stderr, texts)]

    def refused(status: int) -> NoReturn:
        if not active or os.getpid() != parent:  # the code kept this function, or forked a process
            exit_(status)
        raise SystemExit(f"it called os._exit({status}) while it was imported")

    def wait() -> None:
        text = f"waiting  for plugin {plugin}, which is still being imported; {block}={plugin} leaves it out"
        print(text, file=streams[1], flush=True)

    timer = threading.Timer(PATIENCE, wait)
    timer.daemon = True
    timer.start()
    sys.stdout, sys.stderr = recorders
    os._exit = refused
    try:
        yield record
    except KeyboardInterrupt as error:
        error.add_note(f"while plugin {plugin} was imported; {block}={plugin} leaves it out")
        raise
    finally:
        timer.cancel()
        os._exit, active = exit_, False
        _restore(*streams)
        for recorder in recorders:
            recorder.stop()
        record.seconds, record.output = time.perf_counter() - began, "".join(texts)
