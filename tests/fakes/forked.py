"""Commands in forked children of the test's process: libraries are imported once, so that a command starts at once."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs


@attrs.frozen
class Ended:
    """A command that has ended."""

    status: int
    """The exit status, or minus the number of the signal that killed it."""
    out: str
    err: str


def start(
    arguments: Sequence[str],
    folder: Path,
    *,
    modules: Sequence[Path] = (),
    user: int | None = None,
    prepare: Callable[[], object] | None = None,
    output: str = "",
) -> int:
    """Begin `guidedcd ARGUMENTS` in `folder`; the child's process id.

    Args:
        arguments: After the program's name.
        folder: Its current folder.
        modules: Folders of plugins.
        user: Number of another user who runs it.
        prepare: Called in the child before the command.
        output: What it prints goes to `folder` with this text and `.out` and `.err` after its name.
    """
    if child := os.fork():
        return child
    try:
        os.chdir(folder)
        for descriptor, suffix in ((1, ".out"), (2, ".err")):
            target = os.open(
                folder.with_name(folder.name + output + suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666
            )
            os.dup2(target, descriptor)
        # pytest has replaced both.
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for the life of the process
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.path[:0] = map(str, modules)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if user is not None:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
        if prepare is not None:
            prepare()
        status = _status(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    finally:
        os._exit(99)


def _status(arguments: Sequence[str]) -> int:
    """Run the command; its exit status."""
    from guidedcd.cli import main

    try:
        main(list(arguments))
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def ended(child: int, folder: Path, seconds: float = 600.0, output: str = "") -> Ended:
    """Wait for a child that `start` began; one that takes longer than `seconds` is killed, with status -9."""
    deadline = time.monotonic() + seconds
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.005)
    out, err = (
        folder.with_name(folder.name + output + suffix).read_text(encoding="utf-8", errors="backslashreplace")
        for suffix in (".out", ".err")
    )
    return Ended(os.waitstatus_to_exitcode(status), out, err)


def error_line(folder: Path, seconds: float = 60.0) -> str:
    """The standard error of a command as soon as it has a line, which a process that outlives it may write."""
    path, deadline = folder.with_name(folder.name + ".err"), time.monotonic() + seconds
    while not (text := path.read_text(encoding="utf-8")).endswith("\n") and time.monotonic() < deadline:
        time.sleep(0.01)
    return text


def killed(child: int, folder: Path, number: signal.Signals, when: Callable[[], object]) -> Ended:
    """Send a signal to a child as soon as `when()` is true; the child must not have ended before."""
    while not when():
        pid, status = os.waitpid(child, os.WNOHANG)
        assert not pid, f"the command ended too early, with {os.waitstatus_to_exitcode(status)}"
        time.sleep(0.001)
    os.kill(child, number)
    return ended(child, folder)
