"""Runs and components as a Python program describes them: names, options by name, or objects. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from guidedcd.config.kinds import KINDS, Chosen
from guidedcd.config.merge import components_of
from guidedcd.config.sections import EvaluateConfig
from guidedcd.config.sources import ALIASES, Layer, profiles, read_profile
from guidedcd.config.structure import structure, unstructure
from guidedcd.errors import GuidedCDError
from guidedcd.plugins import objects
from guidedcd.plugins.configs import ComponentConfig
from guidedcd.plugins.registry import Registry, load_plugins


def layers_of(profile: str, options: Mapping[str, Any], registry: Registry) -> list[Layer]:
    """The layers of a shipped profile and of `options`, which change it; None leaves an option as it is.

    Raises:
        GuidedCDError: There is no such profile, or an option has a form that no file has.
    """
    content = {key: value for key, value in options.items() if value is not None}
    return [read_profile(profile), layer({**content, "profile": profile}, "Run.from_profile", registry)]


def evaluation_of(teacher: str) -> EvaluateConfig:
    """The options of an evaluation in the first shipped profile that selects `teacher`; the defaults if none does."""
    for name in sorted(profiles()):
        layer = read_profile(name)
        if teacher in [selected for selected, _, _ in layer.select.get("teacher", [])]:
            return structure(EvaluateConfig, layer.sections.get("evaluate", {}), "[evaluate]")
    return EvaluateConfig()


def components(
    key: str, value: Any, where: str, registry: Registry | None = None, below: Sequence[Layer] = ()
) -> list[Chosen]:
    """The components of one kind that `value` names, in the forms that `Run.from_profile` takes.

    Args:
        key: "energies", "rewards", "routes" or "metrics".
        value: A name, an object, a list of these, or by name options, an object, or (object, options).
        where: What to call it in messages.
        registry: The installed plugins.
        below: Options that `value` may change.

    Raises:
        GuidedCDError: A name or option that does not exist.
    """
    registry = registry or load_plugins()
    return components_of(ALIASES.get(key, key), [*below, layer({key: value}, where, registry)], registry)


def layer(content: Mapping[str, Any], where: str, registry: Registry) -> Layer:
    """The layer of a program's own description of a run; objects are replaced by what is recorded of them."""
    described = {
        key: _described(KINDS[ALIASES.get(key, key)], value, registry) if ALIASES.get(key, key) in KINDS else value
        for key, value in content.items()
    }
    return Layer.of_file(_plain(described), where, python=True)


def _described(kind: str, value: Any, registry: Registry) -> Any:
    """A kind's components in the form of a file."""
    if callable(value):
        value = [value]
    if isinstance(value, list | tuple) and any(callable(one) for one in value):
        value = [{_name(one): one} if callable(one) else one for one in value]
    if isinstance(value, Mapping):
        return {name: _options(kind, name, one, registry) for name, one in value.items()}
    if isinstance(value, str) or (isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)):
        return value
    if isinstance(value, list | tuple) and all(isinstance(one, str | Mapping) for one in value):
        tables = [{one: {}} if isinstance(one, str) else one for one in value]
        return [{name: _options(kind, name, one, registry) for name, one in table.items()} for table in tables]
    raise GuidedCDError(
        f"{kind}: expected a name, an object, a list of these, or a table {{'NAME': options or object}} "
        f"(got {value!r})."
    )


def _name(value: Any) -> str:
    """The name of an object that is given without one: that of the function or class."""
    return getattr(value, "__name__", type(value).__name__).strip("<>").lower().replace("_", "-")


def _options(kind: str, name: str, value: Any, registry: Registry) -> Any:
    """The options of one component; those of an object contain what is recorded of it."""
    if value is None or isinstance(value, Mapping):
        return value or {}
    if isinstance(value, ComponentConfig):
        return unstructure(value)
    value, options = value if isinstance(value, tuple) and len(value) == 2 else (value, getattr(value, "config", {}))
    if name in registry.of_kind(kind):
        raise GuidedCDError(f"an installed {kind} is called '{name}' already: give the object another name.")
    if isinstance(options, ComponentConfig):
        fields = {field.name for field in attrs.fields(objects.config_class(kind))}
        options = {key: one for key, one in unstructure(options).items() if key in fields}
    return {**(options if isinstance(options, Mapping) else {}), **objects.record(kind, name, value)}


def _plain(value: Any) -> Any:
    """Values as a TOML or JSON file has them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
