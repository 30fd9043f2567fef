"""Docstrings below the fields of attrs classes, for `help`, the command line and the docs. No torch."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from functools import cache
from typing import TypeVar, cast

import attrs

Class = TypeVar("Class", bound=type)


def documented(cls: Class) -> Class:
    """Let `help(cls)` list the fields of an attrs class; the outermost decorator of the class.

    Python ignores a string below a field. The class docstring therefore gets a section "Attributes", which is read
    from the source on first use, so that imports take no longer.
    """
    # A class evaluates a descriptor in the place of its docstring.
    cls.__doc__ = cast(str, _WithFields(inspect.cleandoc(cls.__doc__ or "")))
    return cls


class _WithFields:
    """The docstring of a class, followed by those of its fields."""

    def __init__(self, summary: str) -> None:
        self.summary = summary

    def __get__(self, instance: object, cls: type) -> str:
        docs = docs_of(cls)
        lines = [f"    {field.name}: {docs.get(field.name, '')}".rstrip() for field in attrs.fields(cls) if field.init]
        return "\n".join([self.summary, "", "Attributes:", *lines]) if lines else self.summary


@cache
def docs_of(cls: type) -> dict[str, str]:
    """The docstring under every field, on one line; inherited fields have their own class's."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, TypeError, SyntaxError, IndexError):
            continue
        statements = getattr(body, "body", [])
        for field, text in itertools.pairwise(statements):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                value = text.value
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    docs[field.target.id] = " ".join(value.value.split())
    return docs
