"""Which options of components a page of help shows: those of the chosen ones, or with `--help-all` those of all."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from guidedcd.config.kinds import ALL_KINDS
from guidedcd.config.sources import Layer, read_config, split_names
from guidedcd.errors import GuidedCDError

ALL = "--help-all"
"""The flag that shows the options of all components."""

NOTE = f"The options below are those of the chosen components; {ALL} shows those of all installed ones."
"""The line of a page that leaves options out."""


def with_help(words: Sequence[str]) -> list[str]:
    """The words of a command line, with `--help` in the place of `--help-all`."""
    return ["--help" if word == ALL else word for word in words]


def shown(words: Sequence[str], key: str, profile: Layer) -> set[str] | None:
    """Names of the components of one kind whose options help shows; None for all.

    Args:
        words: The command line.
        key: The kind, as in flags.
        profile: What is selected where the words name nothing.
    """
    if ALL in words:
        return None
    kind = ALL_KINDS[key]
    if list(words[:2]) == ["try", kind] and len(words) > 2 and not words[2].startswith("-"):
        return {words[2].partition(":")[0]}
    texts = _values(words, f"--{key}")
    if texts is None:
        names = [name for name, _, _ in profile.select.get(key, [])]
        for text in _values(words, "--config") or ():
            with suppress(GuidedCDError, OSError):  # an error of the file is reported when the command runs
                names = [name for name, _, _ in read_config(Path(text)).select.get(key, [])] or names
        return set(names)
    with suppress(GuidedCDError):  # as above
        return {name for name, _, _ in split_names(texts, f"--{key}")}
    return None


def inside(words: Sequence[str]) -> set[str] | None:
    """Names of the components that others are made of, such as clip in `reward:clip`; None for all."""
    if ALL in words:
        return None
    texts = [text for word in words if not word.startswith("-") for text in word.split(",")]
    return {text.split(":")[1] for text in texts if ":" in text}


def _values(words: Sequence[str], flag: str) -> list[str] | None:
    """The values of a flag, None where it is absent."""
    values: list[str] | None = None
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == flag:
            following = [word for word in words[number + 1 : number + 2] if not word.startswith("-")]
            values = [*(values or []), *([value] if equals else following)]
    return values
