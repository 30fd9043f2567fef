"""Mistakes of plugins that Python does not report: decorators and types that were forgotten. No torch here."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from pathlib import PurePath
from typing import Any

import attrs

from guidedcd.errors import PluginError, shown, suggest


def check_hooks(plugin: Any, known: Collection[str], project: str) -> None:
    """Check that functions with names of hooks are marked, and marked functions have names of hooks.

    Args:
        plugin: A module or an object.
        known: The names of all hooks.
        project: Name of the project, which marks implementations of its hooks.

    Raises:
        PluginError: A hook lacks `@hookimpl`, a hook is unknown, or there is none.
    """
    hooks = ", ".join(known)
    members = {name: getattr(plugin, name, None) for name in dir(plugin) if not name.startswith("__")}
    # Any attribute of an object that imports or connects on first use would make it do so; hooks are functions.
    routines = {name: member for name, member in members.items() if inspect.isroutine(member)}
    marked = {name: getattr(member, f"{project}_impl", None) for name, member in routines.items()}
    for name, member in routines.items():
        if marked[name] is not None or hasattr(member, f"{project}_spec"):
            continue
        if name in known or (name.startswith("register_") and suggest(name, known)):
            raise PluginError(f"{name} lacks the decorator @hookimpl, so that guidedcd does not call it")
    implemented = {options.get("specname") or name: options for name, options in marked.items() if options is not None}
    for name, options in implemented.items():
        if name not in known and not options.get("optionalhook"):
            raise PluginError(f"unknown hook '{name}'.{suggest(name, known)} Hooks: {hooks}")
    if not implemented:
        raise PluginError(f"it implements no hook; define one of {hooks} with @hookimpl")


def config_faults(config: type) -> list[str]:
    """A sentence for each name that looks like an option and is none, and for each option of a wrong type.

    Names in capitals are constants.
    """
    values = {
        name
        for name, value in vars(config).items()
        if not (name.startswith("_") or name.isupper())
        and isinstance(value, bool | int | float | str | tuple | list | type(None))
    }
    types = inspect.get_annotations(config)
    class_variables = {name for name, type_ in types.items() if "ClassVar" in str(type_)}
    annotations = set(types) - class_variables
    if "__attrs_attrs__" not in vars(config):
        if names := sorted((values | annotations) - class_variables):
            return [f"{config.__name__} lacks @attrs.frozen(kw_only=True), so that '{names[0]}' is no option"]
        return []
    options = {field.name for field in attrs.fields(config)}
    return [*_default_faults(config)] + [
        f"{config.__name__}.{name} has no type, so that it is no option: write '{name}: float = ...'"
        for name in sorted(values - options - class_variables)
    ]


_PLAIN: dict[str, tuple[type, ...]] = {"bool": (bool,), "int": (int,), "float": (int, float), "str": (str,)}
"""By annotation, the types of defaults."""


def _default_faults(config: type) -> Iterator[str]:
    """A sentence for each option whose default does not suit its type, or that changes an option of the base class."""
    values, inherited = config(), {field.name: field for field in attrs.fields(config.__mro__[1])}
    for field in attrs.fields(config):
        value, what = getattr(values, field.name), f"{config.__name__}.{field.name}"
        annotation = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")
        expected = _PLAIN.get(annotation)
        if isinstance(value, list | dict | set):
            if isinstance(field.default, attrs.Factory):  # type: ignore[arg-type]  # a class, which attrs types as a function
                continue
            yield f"{what} has a {type(value).__name__} as its default, which all runs would share: use a tuple"
        elif not isinstance(value, bool | int | float | str | PurePath | tuple | type(None)):
            yield f"{what} has a {type(value).__name__} as its default; options are numbers, texts, paths or tuples"
        elif expected and (not isinstance(value, expected) or (isinstance(value, bool) and annotation != "bool")):
            yield f"the default of {what} is {shown(value)}, but its type is {annotation}"
        base = inherited.get(field.name)
        if base is not None and base.validator is not None and not field.inherited:
            try:
                base.validator(values, base, value)
            except (TypeError, ValueError):
                yield f"the default of {what}, {shown(value)}, is none that guidedcd accepts for this option of its own"
