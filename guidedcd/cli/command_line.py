"""The command line as it was typed: a run keeps it, so that one can read how it was made."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextvars import ContextVar

_WORDS: ContextVar[tuple[str, ...]] = ContextVar("words", default=())


def note(words: Sequence[str]) -> None:
    """Remember the words after `guidedcd`."""
    _WORDS.set(tuple(words))


def command() -> str:
    """The command, quoted for a shell: "guidedcd train --name 'my run'"."""
    return shlex.join(["guidedcd", *_WORDS.get()])
