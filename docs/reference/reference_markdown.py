"""Markdown for the scripts that write reference pages: wrapped text, tables, and parts of docstrings."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

WIDTH = 100
SECTIONS = ("Args", "Returns", "Raises", "Attributes")


def wrapped(text: str, indent: str = "") -> str:
    """Paragraphs of prose in lines of at most 100 characters; further lines of a paragraph begin with `indent`."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    fill = textwrap.TextWrapper(WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n\n".join(fill.fill(" ".join(paragraph.split())) for paragraph in paragraphs)


def bullets(items: Iterable[str]) -> str:
    """A list of texts."""
    return "\n".join(wrapped(f"- {item}", "  ") for item in items)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; pipes in cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [[cell if cell == "---" else " ".join(cell.split()).replace("|", "\\|") for cell in row] for row in lines]
    return "\n".join(f"|{'|'.join(row)}|" if row[0] == "---" else f"| {' | '.join(row)} |" for row in cells)


def sections(docstring: str | None) -> dict[str, str]:
    """The text of a docstring by section: "" for what precedes the first one, then Args, Returns, ..."""
    parts = re.split(rf"(?m)^({'|'.join(SECTIONS)}):\n", inspect.cleandoc(docstring or ""))
    texts = {name: textwrap.dedent(text) for name, text in zip(parts[1::2], parts[2::2], strict=True)}
    return {"": parts[0].strip(), **texts}


def items(section: str) -> dict[str, str]:
    """The texts of a section by name, such as the arguments of a function."""
    pieces = re.split(r"(?m)^(\S[^:\n]*): ?", section)
    return {name: " ".join(text.split()) for name, text in zip(pieces[1::2], pieces[2::2], strict=True)}


def first_sentence(docstring: str | None) -> str:
    """The first line of a docstring, which is one or more sentences."""
    return " ".join(sections(docstring)[""].split("\n\n")[0].split())


def signature(thing: Any, name: str) -> str:
    """`name` with the arguments of a function or class, one a line where they do not fit into one."""
    parameters = list(inspect.signature(thing).parameters.values())
    parameters = parameters[1:] if parameters and parameters[0].name == "self" else parameters
    words, starred = [], False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            words.append("*")
        starred |= parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        words.append(_argument(parameter))
    line = f"{name}({', '.join(words)})"
    return line if len(line) <= WIDTH - 10 else "\n".join([f"{name}(", *(f"    {word}," for word in words), ")"])


def _argument(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = f"{stars}{parameter.name}"
    if parameter.annotation is not parameter.empty:
        text += f": {annotation(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        default = repr(parameter.default)
        text += f" = {'...' if default == 'NOTHING' or default.startswith('<') else default}"
    return text


def annotation(hint: Any) -> str:
    """A type as it is written in the code."""
    return hint if isinstance(hint, str) else getattr(hint, "__name__", str(hint))
