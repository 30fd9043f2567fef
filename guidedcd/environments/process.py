"""A process of another environment's Python that has loaded one function: its start, its answers and its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import attrs
import torch
from torch import Tensor

from guidedcd.environments import server
from guidedcd.environments.command import foreign_environment
from guidedcd.environments.memory import anonymous_file, is_description
from guidedcd.environments.messages import EndedError, GarbledError, Messages, SilenceError
from guidedcd.errors import GuidedCDError, shown

PATIENCE = 30
"""Seconds beyond the longest deadline after which the process ends itself, if this one no longer can."""
LOG = 2**20
"""Bytes of the process's output that are kept."""


@attrs.frozen(kw_only=True)
class Program:
    """A function in another environment."""

    what: str
    """Its name in errors, for example "reward 'external'"."""
    python: str
    """The Python of that environment."""
    function: str
    """`module:attribute`, `file.py:attribute`, or the name of a reward of guidedcd that is installed there."""
    options: Mapping[str, Any] = attrs.field(factory=dict)
    """Arguments of the class, or options of the reward."""
    timeout: float = 60.0
    """Seconds for one call."""
    start_timeout: float = 600.0
    """Seconds for imports and weights."""

    @property
    def text(self) -> str:
        """The function and where it is, for errors."""
        return f"{self.what}: {self.function} in {self.python}"


class ForeignProcess:
    """One process that answers calls of `program`; any failure but an exception of the function ends it.

    Several threads may use it; their calls follow one another.
    """

    def __init__(self, program: Program) -> None:
        """Start the process, and load the function.

        Raises:
            GuidedCDError: There is no such Python, the function cannot be loaded there, or this system is Windows.
        """
        if not hasattr(os, "killpg"):
            raise GuidedCDError(f"{program.what} needs Linux or macOS, where two processes can share an open file.")
        self.program = program
        self.released: deque[int] = deque()
        """Numbers of calls whose gradient will not be requested."""
        self.pid_of_owner = os.getpid()
        self._lock = threading.RLock()
        self._count = 0
        self._log: BinaryIO = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - for the life of the process
        self._memory = server.Memory(anonymous_file())
        try:
            self._process = self._started()
        finally:
            if not hasattr(self, "_process"):
                os.close(self._memory.descriptor)
        self._messages = Messages(self._process)
        self._close = weakref.finalize(self, _close, self._process, self._memory.descriptor, os.getpid())
        try:
            self.max_tokens, self.counts = self._load()
        except GuidedCDError:
            self.end()
            raise

    @property
    def is_alive(self) -> bool:
        """Whether it can answer calls of this process."""
        if self.pid_of_owner != os.getpid():
            return False
        if self._process.poll() is not None:
            self.end()  # what it started may still run
        return self._close.alive

    def ask(self, request: dict[str, Any], seconds: float | None = None) -> dict[str, Any]:
        """Send a request and return the answer.

        Raises:
            GuidedCDError: The answer states a fault, or there is none.
        """
        seconds = self.program.timeout if seconds is None else seconds
        deadline = time.monotonic() + seconds
        with self._lock:
            self._count += 1
            self._shorten_log()
            try:
                self._messages.send({**request, "id": self._count}, deadline)
                answer = self._messages.receive(deadline)
            except EndedError:
                raise self._failed(self._ended()) from None
            except SilenceError:
                option = "start_timeout" if request["do"] == "load" else "timeout"
                text = (
                    f"gave no answer within {seconds:g} s, so its process was ended; raise the option {option} if it is"
                )
                raise self._failed(f"{self.program.text} {text} only slow{self._last_output()}.") from None
            except GarbledError as error:
                raise self._garbled(error.args[0]) from None
            except BaseException:  # an interruption leaves an answer that nobody reads
                self.end()
                raise
            if answer.get("id") != self._count:
                raise self._garbled(answer)
            if "fault" in answer:
                raise GuidedCDError(self._fault(str(answer["fault"]), str(answer.get("text"))))
            return answer

    def exchange(self, request: dict[str, Any], tensor: Tensor) -> tuple[dict[str, Any], list[Tensor]]:
        """Send a request with a tensor; returns the answer and its tensors on the tensor's device.

        Raises:
            GuidedCDError: See `ask`; or the tensors do not match their description.
        """
        with self._lock:
            (item,) = self._memory.write([tensor])
            answer = self.ask({**request, "tensor": item})
            items = answer.get("tensors")
            if not is_description(items):
                raise self._garbled(answer)
            _, end = server.layout(items)
            size = os.fstat(self._memory.descriptor).st_size
            where = f"{self.program.what}: the process of {self.program.python}"
            if end > size:
                text = f"announced {end} bytes of results, but the shared memory has {size}, so it was ended"
                raise self._failed(f"{where} {text}.")
            if answer.get("checksum") != self._memory.checksum(items):
                text = "wrote other results than it announced, perhaps a part of them only, so it was ended"
                raise self._failed(f"{where} {text}.")
            return answer, self._memory.read(items, tensor.device)

    def wrong(self, text: str) -> GuidedCDError:
        """The error for a result that breaks a contract."""
        return GuidedCDError(f"{self.program.text} {text}.")

    def end(self) -> None:
        """End the process and all that it started."""
        self._close()

    def _load(self) -> tuple[int | None, bool]:
        """The context length that the function states, and whether it counts tokens itself."""
        request = {"do": "load", "function": self.program.function, "options": dict(self.program.options)}
        answer = self.ask({**request, "threads": torch.get_num_threads()}, self.program.start_timeout)
        limit, counts = answer.get("max_tokens"), answer.get("counts")
        sound = isinstance(counts, bool) and (limit is None or type(limit) is int)
        if answer.get("protocol") != server.PROTOCOL or not sound:
            raise self._garbled(answer)
        return limit, bool(counts)

    def _started(self) -> subprocess.Popen[bytes]:
        program = self.program
        longest = int(max(program.timeout, program.start_timeout)) + PATIENCE
        descriptor = self._memory.descriptor
        command = [program.python, "-I", str(Path(server.__file__)), str(descriptor), str(longest)]
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                bufsize=0,
                pass_fds=(descriptor,),
                start_new_session=True,  # Ctrl-C reaches this process alone, which ends the other
                env=foreign_environment(),
            )
        except OSError as error:
            reason = error.strerror or str(error)
            raise GuidedCDError(
                f"{program.what}: the program {program.python} cannot be started ({reason}); the option python must be "
                "the Python of another environment, such as /envs/other/bin/python."
            ) from error

    def _fault(self, whose: str, text: str) -> str:
        if whose == "environment":
            return f"{self.program.what}: the environment of {self.program.python} cannot serve: {text}."
        return f"{self.program.text} {text}."

    def _garbled(self, message: object) -> GuidedCDError:
        text = f"wrote {shown(message)} instead of an answer, so it was ended"
        return self._failed(f"{self.program.what}: the process of {self.program.python} {text}{self._last_output()}.")

    def _ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        status = self._process.returncode
        how = "closed its output" if status is None else f"ended with status {status}"
        if status is not None and status < 0:
            how = f"was ended by signal {-status} ({signal.Signals(-status).name})"
        work = f"while it ran {self.program.function}{self._last_output()}."
        return f"{self.program.what}: the process of {self.program.python} {how} {work}"

    def _failed(self, text: str) -> GuidedCDError:
        self.end()
        return GuidedCDError(text)

    def _last_output(self) -> str:
        """The last 200 characters that the process printed, as a part of a sentence; "" where it printed nothing."""
        size = os.fstat(self._log.fileno()).st_size
        data = os.pread(self._log.fileno(), 400, max(0, size - 400))
        text = " ".join(data.decode(errors="replace").split())
        return f"; the last that it printed is {text[-200:]!r}" if text else ""

    def _shorten_log(self) -> None:
        if os.fstat(self._log.fileno()).st_size > LOG:
            os.ftruncate(self._log.fileno(), 0)  # it is appended to, so the next line is its first


def _close(process: subprocess.Popen[bytes], descriptor: int, owner: int) -> None:
    """End a process and all that it started, and free the memory; in a fork of the owner, only the latter."""
    with contextlib.suppress(OSError):
        os.close(descriptor)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    if os.getpid() != owner:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
