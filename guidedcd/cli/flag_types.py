"""Numbers and paths on the command line, read as strictly as those in files: 4.9 steps are a mistake and not 4."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

from guidedcd.config.structure import convert
from guidedcd.errors import GuidedCDError, refusal


def _whole(type_: Any, tokens: Sequence[Token]) -> int:
    return convert(tokens[0].value, int, tokens[0].keyword or "the argument")


def _count(type_: Any, tokens: Sequence[Token]) -> int:
    return _above(_whole(type_, tokens), tokens, at_least=0)


def _positive_whole(type_: Any, tokens: Sequence[Token]) -> int:
    return _above(_whole(type_, tokens), tokens, at_least=1)


def _positive(type_: Any, tokens: Sequence[Token]) -> float:
    if (number := _number(type_, tokens)) <= 0:
        raise GuidedCDError(refusal(tokens[0].keyword or "the argument", number, "more than 0"))
    return number


MOST = 10**9
"""The largest count."""


def _above(number: int, tokens: Sequence[Token], at_least: int) -> int:
    if number < at_least:
        raise GuidedCDError(refusal(tokens[0].keyword or "the argument", number, f"at least {at_least}"))
    if number > MOST:
        raise GuidedCDError(refusal(tokens[0].keyword or "the argument", number, f"at most {MOST:,}"))
    return number


def _number(type_: Any, tokens: Sequence[Token]) -> float:
    return convert(tokens[0].value, float, tokens[0].keyword or "the argument")


def _path(type_: Any, tokens: Sequence[Token]) -> Path:
    return convert(tokens[0].value, Path, tokens[0].keyword or "the path")


WHOLE = Parameter(converter=_whole, n_tokens=1)
"""For a flag that takes a whole number: Annotated[int, WHOLE]."""
NUMBER = Parameter(converter=_number, n_tokens=1)
"""For a flag that takes a finite number: Annotated[float, NUMBER]."""
COUNT = Parameter(converter=_count, n_tokens=1)
"""For a flag that takes a whole number of at least 0."""
POSITIVE_WHOLE = Parameter(converter=_positive_whole, n_tokens=1)
"""For a flag that takes a whole number of at least 1."""
POSITIVE = Parameter(converter=_positive, n_tokens=1)
"""For a flag that takes a finite number above 0."""

_PATH = Parameter(converter=_path, n_tokens=1)
PathArgument = Annotated[Path, _PATH]
"""The type of a path, which an empty text is not."""
PathFlag = Annotated[Path | None, _PATH]
"""The type of a flag that takes a path."""
