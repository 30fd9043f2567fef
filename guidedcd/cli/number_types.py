"""Numbers on the command line, read as strictly as those in files: 4.9 steps are a mistake and not 4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cyclopts import Parameter, Token

from guidedcd.config.structure import convert


def _whole(type_: Any, tokens: Sequence[Token]) -> int:
    return convert(tokens[0].value, int, tokens[0].keyword or "the argument")


def _number(type_: Any, tokens: Sequence[Token]) -> float:
    return convert(tokens[0].value, float, tokens[0].keyword or "the argument")


WHOLE = Parameter(converter=_whole, n_tokens=1)
"""For a flag that takes a whole number: Annotated[int, WHOLE]."""
NUMBER = Parameter(converter=_number, n_tokens=1)
"""For a flag that takes a finite number: Annotated[float, NUMBER]."""
