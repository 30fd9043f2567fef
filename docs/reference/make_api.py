"""The blocks of docs/reference/python-api.md: every public name, with its arguments, returned values and errors."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
from make_hooks import RECEIVED
from reference_markdown import bullets, first_sentence, items, sections, signature, table, wrapped

import guidedcd
from guidedcd.plugins.hookspecs import Register

RESULTS = {"load_teacher": "guidedcd.inference.teacher_pipeline:TeacherPipeline"}
"""Classes that have no public name of their own, by the function that returns them."""
SUMMARIES = {
    "hookimpl": "Marks a function of a plugin as the implementation of a hook.",
    "__version__": "The version of this package.",
}
"""Of names whose docstrings are those of another library."""


def groups() -> tuple[list[str], list[str]]:
    """The public names for people who run distillations, and those for people who write components."""
    source = Path(guidedcd.__file__).read_text(encoding="utf-8")
    table_of_names = source[source.index("_PLACES = {") : source.index("__all__ = ")]
    run, extend = table_of_names.split("# for people who extend")
    return [*re.findall(r'(?m)^    "(\w+)":', run), "__version__"], re.findall(r'(?m)^    "(\w+)":', extend)


def summary(name: str) -> str:
    """One or two sentences about a public name."""
    return SUMMARIES.get(name) or first_sentence(sections(inspect.getdoc(getattr(guidedcd, name)))[""])


def names(which: int) -> str:
    """A table of the names of one group."""
    return table(("name", "what it is"), [(f"`{name}`", summary(name)) for name in groups()[which]])


def functions() -> str:
    """A section for each function."""
    parts = []
    for name in groups()[0]:
        thing = getattr(guidedcd, name)
        if inspect.isfunction(thing):
            parts.append(f"### `{name}`\n\n{described(thing, f'guidedcd.{name}')}")
        if name in RESULTS:
            module, _, attribute = RESULTS[name].partition(":")
            cls = getattr(importlib.import_module(module), attribute)
            parts.append(f"The result is a `{attribute}`, which has these methods:")
            parts += methods(cls, "teacher")
    return "\n\n".join(parts)


def classes() -> str:
    """A section for each class, without those that the page of hooks describes."""
    parts = []
    for name in (*groups()[0], *groups()[1]):
        cls = getattr(guidedcd, name)
        if (
            not inspect.isclass(cls)
            or name in RECEIVED
            or name.endswith("Config")
            or cls in (guidedcd.Teacher, Register)
        ):
            continue
        parts.append(f"### `{name}`")
        documented = sections(cls.__doc__)
        parts.append(wrapped(documented[""]))
        if "Attributes" in documented:
            parts.append(bullets(f"`{field}`: {text}" for field, text in items(documented["Attributes"]).items()))
        parts += methods(cls, name)
    return "\n\n".join(parts)


def methods(cls: type, owner: str) -> Iterator[str]:
    """The public methods of a class, those that it inherits from other classes of this package included."""
    seen = set()
    for base in cls.__mro__:
        if not base.__module__.startswith("guidedcd"):
            continue
        for name, value in vars(base).items():
            static = isinstance(value, staticmethod | classmethod)
            function = value.__func__ if static else value
            if name in seen or not inspect.isfunction(function) or (name.startswith("_") and name != "__call__"):
                continue
            seen.add(name)
            if function.__doc__ and not attrs.has(type(value)):
                yield described(getattr(cls, name), owner if name == "__call__" else f"{owner}.{name}")


def described(function: Any, name: str) -> str:
    """Signature, summary, arguments, result and errors of a function or method."""
    documented = sections(function.__doc__)
    parts = [f"```text\n{signature(function, name)}\n```", wrapped(documented[""])]
    if "Args" in documented:
        parts.append(bullets(f"`{argument}`: {text}" for argument, text in items(documented["Args"]).items()))
    if "Returns" in documented:
        parts.append(wrapped(f"*Returns:* {' '.join(documented['Returns'].split())}"))
    if "Raises" in documented:
        errors = items(documented["Raises"]).items()
        parts.append(wrapped("*Raises:* " + " ".join(f"`{error}`: {text}" for error, text in errors)))
    return "\n\n".join(parts)


BLOCKS = {
    "names-run": lambda: names(0),
    "names-extend": lambda: names(1),
    "functions": functions,
    "classes": classes,
}
