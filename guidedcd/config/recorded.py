"""Components of a run that are not installed any more: their recorded options, for sampling without them. No torch."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from guidedcd.config.kinds import KINDS
from guidedcd.config.sources import Layer
from guidedcd.plugins import objects
from guidedcd.plugins.registry import CONFIGS, Component, Registry

VALUE = "recorded_value"
"""The option that holds the VALUE of NAME:VALUE; which of the recorded options it was is unknown."""


def completed(registry: Registry, layer: Layer) -> Registry:
    """The installed components, and one in the place of each that `layer` has and that is not installed.

    A student needs its teacher, and of its energies only the options that the engine reads.

    Args:
        registry: The installed plugins.
        layer: The layer of a run.json.
    """
    components = list(registry.components)
    for key, kind in KINDS.items():
        if kind == "teacher":
            continue
        missing: dict[str, set[str]] = {}
        for written, options in layer.options.get(key, []):
            name, colon, _ = written.partition(":")
            if name not in registry.of_kind(kind) and objects.MARK not in options:
                missing.setdefault(name, set()).update([*options, *([VALUE] if colon else [])])
        components += [
            Component(kind, name, "", _recorded_class(kind, options), "no installed plugin")
            for name, options in missing.items()
        ]
    return attrs.evolve(registry, components=components)


def _recorded_class(kind: str, options: Iterable[str]) -> type:
    """A config class of a kind with the recorded options, whatever their values."""
    base = CONFIGS[kind]
    names = {option.replace("-", "_") for option in options} - {field.name for field in attrs.fields(base)}
    fields = {
        name: attrs.field(
            default="" if name == VALUE else None, metadata={"positional": "name"} if name == VALUE else {}
        )
        for name in sorted(filter(str.isidentifier, names))
    }
    return attrs.make_class(f"Recorded{base.__name__}", fields, bases=(base,), frozen=True, kw_only=True)
