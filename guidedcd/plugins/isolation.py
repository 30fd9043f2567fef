"""Running a plugin's code: it cannot end the program, print into results, or block silently. No torch here."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NoReturn, TextIO

import attrs

from guidedcd.plugins import process_state, watcher

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
    changes: list[str] = attrs.field(factory=list)
    """The parts of the process's state that it changed."""
    threads: list[str] = attrs.field(factory=list)
    """The names of threads that it started and that still run."""

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
        if self.changes:
            sentences.append(
                f"importing it changes {', '.join(self.changes)}, which all plugins share; guidedcd restores it"
            )
        if self.threads:
            sentences.append(
                f"importing it starts the thread {', '.join(self.threads)}; start threads when the component is called"
            )
        return sentences


class _Recorder:
    """A stream that records text while a plugin is imported, and passes it on afterwards.

    A handler of `logging` that the plugin creates keeps the stream. Closing it has no effect on the program's stream.
    """

    def __init__(self, stream: TextIO, texts: list[str]) -> None:
        self._stream, self._texts, self._records = stream, texts, True
        self.buffer = _Bytes(self)

    def write(self, text: str) -> int:
        """Record `text`, or write it."""
        if not self._records:
            return self._stream.write(text)
        self._texts.append(text)
        return len(text)

    def write_bytes(self, data: bytes) -> None:
        """Record bytes as text, or write them."""
        if self._records or not hasattr(self._stream, "buffer"):
            self.write(data.decode("utf-8", "backslashreplace"))
        else:
            self._stream.buffer.write(data)

    def stop(self) -> None:
        """Pass all further text on."""
        self._records = False

    def close(self) -> None:
        """Leave the program's stream open."""

    def detach(self) -> _Bytes:
        """The bytes of this stream, which remains usable."""
        return self.buffer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Bytes(io.RawIOBase):
    """The binary stream below a recorder."""

    def __init__(self, recorder: _Recorder) -> None:
        self._recorder = recorder

    def writable(self) -> bool:
        """True."""
        return True

    def write(self, data: Any) -> int:
        """Record or write bytes."""
        content = bytes(data)
        self._recorder.write_bytes(content)
        return len(content)

    def fileno(self) -> int:
        """The descriptor of the program's stream."""
        return self._recorder.fileno()


@contextmanager
def printing_to_stderr() -> Iterator[None]:
    """Within this block text for standard output goes to standard error, because results such as JSON are on the first.

    `os._exit` is an error, as in `isolated`.

    Raises:
        SystemExit: The code called `os._exit`.
    """
    with _PATCHES, _descriptor_to_stderr(), _no_exit("it called os._exit({status})"):
        before, sys.stdout = sys.stdout, sys.stderr
        try:
            yield
        finally:
            _restore(before, sys.stderr)


class PluginWarning(UserWarning):
    """A component changed the state of the process."""


@contextmanager
def guarded(whose: str) -> Iterator[None]:
    """Import or build a component in this block: its text goes to standard error, and numerical defaults are restored.

    Args:
        whose: The component in the warning, such as "energy 'smooth' of acme/smooth".

    Raises:
        SystemExit: The code ended the program, also by `os._exit`.
    """
    with process_state.restored(process_state.NUMERIC) as changes, printing_to_stderr():
        yield
    if changes:
        text = f"{whose} changed {', '.join(changes)} when it was built; guidedcd restored the former value."
        warnings.warn(text, PluginWarning, stacklevel=1)


@contextmanager
def _descriptor_to_stderr() -> Iterator[None]:
    """Within this block standard output's descriptor, to which C code writes, is that of standard error."""
    try:
        saved = os.dup(1)
    except OSError:  # a service without standard output
        yield
        return
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


@contextmanager
def _no_exit(sentence: str) -> Iterator[None]:
    """Within this block `os._exit` raises SystemExit with `sentence`, in this process and thread of execution."""
    exit_, parent, active = os._exit, os.getpid(), True

    def refused(status: int) -> NoReturn:
        if not active or os.getpid() != parent:  # the code kept this function, or forked a process
            exit_(status)
        raise SystemExit(sentence.format(status=status))

    os._exit = refused
    try:
        yield
    finally:
        os._exit, active = exit_, False
        if os.getpid() != parent:  # a process that the code forked must not continue the program
            exit_(0)


@contextmanager
def _daemon_threads(record: Import) -> Iterator[None]:
    """Threads that this block starts do not keep the program from ending; those that remain are recorded."""
    start, importer, started = threading.Thread.start, threading.current_thread(), []

    def start_daemon(thread: threading.Thread) -> None:
        if threading.current_thread() is importer:
            started.append(thread)
            if not thread.is_alive():
                thread.daemon = True
        start(thread)

    threading.Thread.start = start_daemon  # type: ignore[method-assign, assignment]  # restored below
    try:
        yield
    finally:
        threading.Thread.start = start  # type: ignore[method-assign]
        record.threads = [repr(thread.name) for thread in started if thread.is_alive()]


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
    record, began = Import(), time.perf_counter()
    streams, recorders = (sys.stdout, sys.stderr), [_Recorder(sys.stdout, texts), _Recorder(sys.stderr, texts)]

    def wait() -> None:
        text = f"waiting  for plugin {plugin}, which is still being imported; {block}={plugin} leaves it out"
        print(text, file=streams[1], flush=True)

    timer = threading.Timer(PATIENCE, wait)
    timer.daemon = True
    timer.start()
    exit_sentence = "it called os._exit({status}) while it was imported"
    watcher.note(f"error: guidedcd was killed while plugin {plugin} was imported; {block}={plugin} leaves it out.")
    try:
        with (
            _descriptor_to_stderr(),
            _no_exit(exit_sentence),
            process_state.restored(process_state.WHOLE) as record.changes,
            _daemon_threads(record),
        ):
            sys.stdout, sys.stderr = recorders
            yield record
    except KeyboardInterrupt as error:
        error.add_note(f"while plugin {plugin} was imported; {block}={plugin} leaves it out")
        raise
    finally:
        timer.cancel()
        watcher.note("")
        _restore(*streams)
        for recorder in recorders:
            recorder.stop()
        record.seconds, record.output = time.perf_counter() - began, "".join(texts)


_OWN = "guidedcd/"
"""How the ids of the plugins begin that come with guidedcd."""
_HARMLESS: dict[tuple[str, str], ModuleType] = {}
"""By id and version, the modules of plugins that were imported without a complaint."""


def remember(plugin: str, version: str, module: object) -> None:
    """Note that the import of a plugin did nothing but define names; only modules can be known again."""
    if isinstance(module, ModuleType):
        _HARMLESS[plugin, version] = module


def is_known(plugin: str, version: str) -> bool:
    """Whether a plugin needs no isolation, which takes a millisecond: it is guidedcd's own, or was imported before.

    The import of a module that Python has already executes nothing.
    """
    module = _HARMLESS.get((plugin, version))
    return plugin.startswith(_OWN) or (module is not None and sys.modules.get(module.__name__) is module)
