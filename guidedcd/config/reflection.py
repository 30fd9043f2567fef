"""Types and limits of a config class, for the command line and the docs. No torch."""

from __future__ import annotations

import typing
from functools import cache
from typing import Any

import attrs


def flag(name: str) -> str:
    """How a field is spelled on the command line."""
    return name.replace("_", "-")


@cache
def types_of(cls: type) -> dict[str, Any]:
    """The type of every field, annotations resolved where they can be."""
    try:
        hints = typing.get_type_hints(cls, include_extras=False)
    except Exception:  # a plugin may import a name for type checkers only
        hints = {}
    return {field.name: hints.get(field.name, field.type) for field in attrs.fields(cls)}


@cache
def groups_of(cls: type) -> dict[str, type]:
    """The fields that are groups of options, each with its attrs class."""
    return {name: hint for name, hint in types_of(cls).items() if isinstance(hint, type) and attrs.has(hint)}


def limits(field: attrs.Attribute) -> str:
    """The values that a field accepts, read from attrs' own validators: "one of a, b", ">= 0", or ""."""
    return ", ".join(_limits(field.validator))


def _limits(validator: Any) -> list[str]:
    match type(validator).__name__:
        case "_OptionalValidator":
            return _limits(validator.validator)
        case "_AndValidator":
            return [text for one in validator._validators for text in _limits(one)]
        case "_InValidator":
            return [f"one of {', '.join(map(str, validator.options))}"]
        case "_NumberValidator":
            return [f"{validator.compare_op} {validator.bound}"]
    return []


def positional(cls: type) -> attrs.Attribute | None:
    """The field that the VALUE in NAME:VALUE fills, marked with metadata={"positional": True}."""
    return next((field for field in attrs.fields(cls) if field.metadata.get("positional")), None)
