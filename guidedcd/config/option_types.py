"""Types and limits of a config class, for the command line and the docs. No torch."""

from __future__ import annotations

import typing
from collections.abc import Iterator
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
    """The values that a field accepts, read from attrs' own validators: "one of a, b", "from 1 to 50", or ""."""
    bounds = dict(_bounds(field.validator))
    if bounds.keys() == {"at least", "at most"}:
        return f"from {bounds['at least']} to {bounds['at most']}"
    return " and ".join(f"{relation} {bound}" for relation, bound in bounds.items())


def _bounds(validator: Any) -> Iterator[tuple[str, str]]:
    """A relation and its bound for each of attrs' own validators in `validator`: ("at least", "0")."""
    match type(validator).__name__:
        case "_OptionalValidator":
            yield from _bounds(validator.validator)
        case "_AndValidator":
            for one in validator._validators:
                yield from _bounds(one)
        case "_InValidator":
            yield "one of", ", ".join(map(str, validator.options))
        case "_NumberValidator":
            bound = validator.bound
            yield _RELATIONS[validator.compare_op], f"{bound:,}" if _is_long(bound) else str(bound)


def _is_long(number: Any) -> bool:
    return isinstance(number, int) and number >= 10_000


_RELATIONS = {">=": "at least", ">": "more than", "<=": "at most", "<": "less than"}


def positional(cls: type) -> attrs.Attribute | None:
    """The field that the VALUE in NAME:VALUE fills, marked with metadata={"positional": True}."""
    return next((field for field in attrs.fields(cls) if field.metadata.get("positional")), None)


def kind_inside(cls: type) -> str | None:
    """The kind of the component that this one is made of, named by its value: metadata={"kind": "reward"}."""
    field = naming(cls)
    return field.metadata.get("kind") if field is not None else None


def naming(cls: type) -> attrs.Attribute | None:
    """The positional field whose value belongs to the component's name, marked with metadata={"positional": "name"}."""
    field = positional(cls)
    return field if field is not None and field.metadata["positional"] == "name" else None
