"""A program of another environment that is run to its end, with files as the interface. No torch."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from guidedcd.console import harmless
from guidedcd.errors import GuidedCDError, unwritable

OF_A_LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables of a launch of several processes, of which the other process is none."""


def foreign_environment() -> dict[str, str]:
    """The environment variables for a program of another environment."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in (*OF_A_LAUNCH, "VIRTUAL_ENV") and not name.startswith("PYTHON")
    }


def run_command(words: Sequence[str], *, what: str, folder: Path, log: Path, timeout: float, advice: str) -> None:
    """Run a program and wait for its end. It ends with this process, also if that is interrupted.

    The folder of the program is the first on its PATH, so that it finds the Python of its own environment.

    Args:
        words: The program and its arguments.
        what: What it does, for errors.
        folder: The folder in which it runs.
        log: The file for all that it prints.
        timeout: Seconds after which it is ended.
        advice: What to do if the program does not exist.

    Raises:
        GuidedCDError: It cannot be started, fails, or takes too long; with the last line that it printed.
    """
    environment = foreign_environment()
    if (path := shutil.which(words[0])) is not None:
        folders = [str(Path(path).parent), *filter(None, [environment.get("PATH")])]
        environment["PATH"] = os.pathsep.join(folders)
    try:
        with open(log, "wb") as output:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                start_new_session=True,  # its own children are ended with it
                env=environment,
            )
    except (FileNotFoundError, PermissionError, OSError) as error:
        if isinstance(error, OSError) and error.filename == str(log):
            raise unwritable(error, log) from error
        raise GuidedCDError(
            f"{what}: the program {words[0]} cannot be started ({error.strerror or error}). {advice}"
        ) from error
    try:
        status = process.wait(timeout)
    except subprocess.TimeoutExpired:
        _end(process)
        raise GuidedCDError(
            f"{what}: {words[0]} did not end within {timeout:g} s, so it was ended{last_line(log)}."
        ) from None
    except BaseException:
        _end(process)
        raise
    if status:
        how = f"ended with status {status}" if status > 0 else f"was ended by signal {-status}"
        raise GuidedCDError(f"{what}: {words[0]} {how}{last_line(log)}.")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def last_line(log: Path) -> str:
    """The last line of a log, as a part of a sentence, with the log's place."""
    with open(log, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 2000))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    text = f"; the last that it printed is {harmless(lines[-1])[-200:]!r}" if lines else ""
    return f"{text} (see {log})"
