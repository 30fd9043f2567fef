"""The blocks of docs/reference/plugin-hooks.md: hooks, options of each kind, optional members, values received."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import cached_property

import attrs
import make_config
from reference_markdown import annotation, first_sentence, items, sections, table, wrapped

import guidedcd
from guidedcd.config.kinds import ALL_KINDS
from guidedcd.docstrings import docs_of
from guidedcd.plugins import hookspecs, optional
from guidedcd.plugins.registry import CONFIGS, HOOKS

HEAD = ("option", "default", "accepts", "meaning")
RECEIVED = ("Seen", "Sample", "Route", "Clip", "ClipSize", "Prompt", "Geometry")


def register() -> str:
    """The arguments of the function that every hook receives."""
    documented = items(sections(hookspecs.Register.__call__.__doc__)["Args"])
    names = list(inspect.signature(hookspecs.Register.__call__).parameters)[1:]
    parts = [f"## `register({', '.join(names)})`"]
    parts += [f"### `{name}`\n\n{wrapped(documented[name])}" for name in names]
    return "\n\n".join(parts)


def hook(kind: str) -> Callable[[], str]:
    """The function that writes the heading of a hook, and the options that every component of its kind has."""

    def write() -> str:
        function = getattr(hookspecs, HOOKS[kind])
        arguments = ", ".join(inspect.signature(function).parameters)
        parts = [f"## `{HOOKS[kind]}({arguments})`", wrapped(inspect.getdoc(function) or "")]
        key = next(key for key, value in ALL_KINDS.items() if value == kind)
        base = f"The config of the component derives from `guidedcd.{CONFIGS[kind].__name__}`"
        if attrs.fields(CONFIGS[kind]):
            parts += [wrapped(f"{base}, which has these options:"), table(HEAD, rows(CONFIGS[kind], f"{key}.NAME"))]
        else:
            parts.append(wrapped(f"{base}, which has no options."))
        return "\n\n".join(parts)

    return write


def rows(cls: type, path: str) -> list[tuple[str, str, str, str]]:
    """(option, default, accepted values, meaning) of every field of a config class, as cells of a table."""
    return [
        (f"`{name}`", make_config.spelled(default), accepted, meaning)
        for name, default, accepted, meaning in make_config.options(cls, path)
    ]


def optional_members(kind: str) -> Callable[[], str]:
    """The function that writes the table of a kind's optional members, and of its optional options."""

    def write() -> str:
        parts = [table(("optional member", "meaning"), members(optional.ATTRIBUTES[kind]))]
        if kind in optional.OPTIONS:
            names = ", ".join(f"`{name}`" for name in optional.names(kind, optional.OPTIONS))
            parts.append(wrapped(f"{first_sentence(optional.OPTIONS[kind].__doc__)[:-1]}: {names}."))
        return "\n\n".join(parts)

    return write


def members(protocol: type) -> Iterator[tuple[str, str]]:
    """(member, meaning) of a protocol, in the order of its definition."""
    docs = docs_of(protocol)
    names = [name for name in (*protocol.__annotations__, *vars(protocol)) if not name.startswith("_")]
    for name in dict.fromkeys(names):
        value = inspect.getattr_static(protocol, name, None)
        if isinstance(value, property):
            yield f"`{name}`", first_sentence(value.fget.__doc__)
        elif isinstance(value, staticmethod) or inspect.isfunction(value):
            function = value.__func__ if isinstance(value, staticmethod) else value
            arguments = [argument for argument in inspect.signature(function).parameters if argument != "self"]
            yield f"`{name}({', '.join(arguments)})`", first_sentence(function.__doc__)
        else:
            yield f"`{name}`", docs.get(name, f"{annotation(protocol.__annotations__[name])}")


def teacher() -> str:
    """The members that every teacher has."""
    return table(("member", "meaning"), members(guidedcd.Teacher))


def values() -> str:
    """The classes of the values that components receive, with their fields and methods."""
    parts = []
    for name in RECEIVED:
        cls = getattr(guidedcd, name)
        cells = [(f"`{field.name}`", docs_of(cls).get(field.name, "")) for field in attrs.fields(cls)]
        for member, value in vars(cls).items():
            if member.startswith("_"):
                continue
            if isinstance(value, cached_property | property):
                cells.append((f"`{member}`", first_sentence((getattr(value, "fget", None) or value.func).__doc__)))
            elif inspect.isfunction(value):
                arguments = ", ".join(list(inspect.signature(value).parameters)[1:])
                cells.append((f"`{member}({arguments})`", first_sentence(value.__doc__)))
        heading = f"### `guidedcd.{name}`"
        parts += [heading, wrapped(first_sentence(sections(cls.__doc__)[""])), table(("member", "meaning"), cells)]
    return "\n\n".join(parts)


BLOCKS: dict[str, Callable[[], str]] = {
    "register": register,
    **{f"hook-{kind}": hook(kind) for kind in HOOKS},
    **{f"optional-{kind}": optional_members(kind) for kind in optional.ATTRIBUTES if kind in HOOKS},
    "optional-clips": optional_members("clips"),
    "teacher": teacher,
    "values": values,
}
