"""Errors as one line and an exit status; a bug of guidedcd itself keeps its traceback."""

from __future__ import annotations

import errno
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path

from cyclopts import CycloptsError, UnknownOptionError, UnusedCliTokensError

from guidedcd.console import harmless
from guidedcd.errors import GuidedCDError, Terminated, described, shortened, unreadable, unwritable
from guidedcd.plugins.registry import CONFIGS, Registry

SMALLER = {
    "train": "Lower --train.batch-size or --train.reward-batch, or set "
    "--train.activation-checkpoint.layers all or --student.kind lora.",
    "preprocess": "Lower --preprocess.batch-size.",
    "evaluate": "Close what else uses the memory, or use --device cpu.",
    "sample": "Give fewer prompts at once, or use --device cpu.",
}
"""By command, the settings that need less memory."""


CONTINUE = ("train", "preprocess", "sample", "evaluate")
"""Commands that continue where they were stopped."""

LONGEST = 900
"""Characters of the longest error; a longer one is cut in its middle."""


def explain(error: BaseException, tokens: Sequence[str], registry: Registry) -> int | None:
    """Print `error` as one line unless it is a bug of guidedcd itself; returns its exit status, or None for a bug."""
    command = next((token for token in tokens if not token.startswith("-")), "")
    if isinstance(error, KeyboardInterrupt):
        more = ": the same command continues where this one stopped" if command in CONTINUE else ""
        terminated = isinstance(error, Terminated)
        whose = _component(error)
        more = f" while {whose} was running{more}" if whose else _notes(error) or more
        _say(f"{'terminated' if terminated else 'interrupted'}{more}.", prefix="")
        return 143 if terminated else 130
    if isinstance(error, CycloptsError):
        _say(_usage(error, command, registry))
    elif isinstance(error, GuidedCDError):
        _say(str(error) + _whose(error))
    elif _is_out_of_memory(error):
        _say(f"out of memory{_notes(error)}. {SMALLER.get(command, 'Use a smaller batch.')}")
    elif isinstance(error, BrokenPipeError):  # the reader of a pipe has gone; print nothing, also not at exit
        _drop_output()
        return 141
    elif isinstance(error, OSError) and error.errno in _EXPLAINED:
        _say(str(_explained(error)))
    elif (whose := _component(error)) is not None and not os.environ.get(TRACEBACK):
        where = _place(error) + _subject(error)
        _say(f"{whose} failed with {described(error)}{where}. {TRACEBACK}=1 shows the traceback.")
    else:
        return None
    return 2


TRACEBACK = "GUIDEDCD_TRACEBACK"
"""The environment variable with which an exception of a component keeps its traceback."""
_NOTE = re.compile(rf"in ((?:{'|'.join(CONFIGS)}) '.+' of .+)")
"""The note that names the component in which an exception was raised."""


def _component(error: BaseException) -> str | None:
    """The component in whose code an exception was raised; None for one of guidedcd itself."""
    matches = (_NOTE.fullmatch(note) for note in getattr(error, "__notes__", ()))
    return next((match[1] for match in matches if match), None)


def _place(error: BaseException) -> str:
    """The file and line of the component's code, " (energy.py, line 9)": the last that is of no library."""
    stdlib, package = sysconfig.get_path("stdlib"), str(Path(__file__).parents[1])
    frames = list(traceback.extract_tb(error.__traceback__))
    own = [
        frame
        for frame in frames
        if not any(f"{os.sep}{name}{os.sep}" in frame.filename for name in ("torch", "diffusers", "transformers"))
        and not frame.filename.startswith(package + os.sep)
        and (not frame.filename.startswith(stdlib) or "site-packages" in frame.filename)
    ]
    if not (frames := own or frames):
        return ""
    return f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})"


def _subject(error: BaseException) -> str:
    """What a component was called with, such as " for sample 'toy/900'", where a note names it."""
    return "".join(f" {note}" for note in getattr(error, "__notes__", ()) if note.startswith("for "))


def _notes(error: BaseException) -> str:
    return "".join(f" {note}" for note in getattr(error, "__notes__", ()))


_EXPLAINED = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)


def _explained(error: OSError) -> GuidedCDError:
    """The sentence for an operating system's error that no part of the program expected."""
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else Path("a file")
    if error.errno in (errno.EACCES, errno.EPERM) and _is_out_of_reach(path):
        return unreadable(error, path)
    return unwritable(error, path)


def _is_out_of_reach(path: Path) -> bool:
    """Whether this user may not read a file, or may not enter one of the folders above it."""
    folders = [folder for folder in path.absolute().parents if os.path.isdir(folder)]
    return any(not os.access(folder, os.X_OK) for folder in folders) or (
        os.path.exists(path) and not os.access(path, os.R_OK)
    )


def _say(text: str, prefix: str = "error: ") -> None:
    """One line on standard error, however the text was broken."""
    try:
        sys.stdout.flush()
    except OSError:  # what it still holds can never be written, and must not fail once more at exit
        _drop_output()
    print(prefix + shortened(harmless(" ".join(text.split())), LONGEST), file=sys.stderr, flush=True)


def _drop_output() -> None:
    """Let what is printed from now on go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _whose(error: GuidedCDError) -> str:
    """The component whose code raised an error that does not name it: " (in energy 'smooth' of acme/smooth)"."""
    notes = [note for note in getattr(error, "__notes__", ()) if note.startswith("in ")]
    unnamed = [note for note in notes if note.removeprefix("in ") not in str(error)]
    return f" ({' '.join(unnamed)}{_subject(error)})" if unnamed else ""


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError) or "torch" not in sys.modules:
        return False
    from guidedcd.devices import is_out_of_memory

    return is_out_of_memory(error)


def _usage(error: CycloptsError, command: str, registry: Registry) -> str:
    """The sentence for an error in the words of the command line."""
    text = str(error).strip()
    if isinstance(error, UnusedCliTokensError):
        tokens = error.unused_tokens or ()
        advice = f"See `guidedcd {command} --help`."
        if {*tokens} <= {"true", "false"}:
            advice = "A switch takes its value after '=', such as --option=true."
        words = ", ".join(f"'{token}'" for token in tokens)
        text = f"{words} is not expected here. {advice}"
    elif isinstance(error, UnknownOptionError) and (options := _of_other_groups(error)):
        text = f"Unknown option: {error.token.keyword}. Did you mean {options}?"
    elif isinstance(error, UnknownOptionError) and registry.failures and text.count(".") > 1:
        broken = ", ".join(failure.plugin for failure in registry.failures)
        text += f" Not loaded: {broken}. See `guidedcd plugins doctor`."
    return text


def _of_other_groups(error: UnknownOptionError) -> str:
    """The options whose last part is the unknown one, such as --train.optimizer.lr for --lr; at most three, or ""."""
    name = (error.token.keyword or "").split("=")[0]
    written = [one for argument in error.argument_collection if argument.parse for one in argument.names]
    fitting = [one for one in dict.fromkeys(written) if one.startswith("--") and f"--{one.rpartition('.')[2]}" == name]
    fitting.sort(key=lambda one: (not one.startswith("--train."), one.count(".")))
    *first, last = fitting[:3] or [""]
    return f"{', '.join(first)} or {last}" if first else last
