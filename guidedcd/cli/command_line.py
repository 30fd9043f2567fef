"""The command line as it was typed, which a run keeps, and the line that is printed first."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextvars import ContextVar

from guidedcd.console import console

_WORDS: ContextVar[tuple[str, ...]] = ContextVar("words", default=())


def note(words: Sequence[str]) -> None:
    """Remember the words after `guidedcd`."""
    _WORDS.set(tuple(words))


def words() -> tuple[str, ...]:
    """The words after `guidedcd`."""
    return _WORDS.get()


def starting(text: str) -> None:
    """Print a line before PyTorch is imported, which takes many seconds on a busy machine; in one process of a launch.

    Args:
        text: What is loaded now, with the command in its first column.
    """
    if os.environ.get("RANK", "0") == "0":
        console.print(text)


def command() -> str:
    """The command, quoted for a shell: "guidedcd train --name 'my run'"."""
    return shlex.join(["guidedcd", *_WORDS.get()])
