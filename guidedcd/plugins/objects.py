"""Objects of the calling program in place of installed components. No torch here.

An energy, reward, routing rule or metric may be a function, an instance or a class. The run records its qualified name
and its source, and is not continued with a changed one.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import attrs

from guidedcd.errors import GuidedCDError
from guidedcd.files import digest
from guidedcd.plugins.configs import ComponentConfig
from guidedcd.plugins.registry import CONFIGS, Component

KINDS = ("energy", "reward", "route", "metric")
"""Kinds of components that may be objects."""

MARK = "python_object"
"""The option that marks the config of an object, with the object's qualified name."""

_OBJECTS: dict[tuple[str, str, str], Any] = {}
"""The objects of this process by kind, name and digest of the source."""


@cache
def config_class(kind: str) -> type:
    """The config class of objects of one kind: its base options, and the name, digest and source of the object.

    The engine records the latter; the metadata `recorded` marks them, so that messages do not list them as options.
    """
    fields = {MARK: str, "source_digest": str, "source": str}
    return attrs.make_class(
        f"Object{CONFIGS[kind].__name__}",
        {name: attrs.field(default="", type=type_, metadata={"recorded": True}) for name, type_ in fields.items()},
        bases=(CONFIGS[kind],),
        frozen=True,
        kw_only=True,
    )


def record(kind: str, name: str, value: Any) -> dict[str, str]:
    """Remember `value` in this process, and return the options that identify it in a run.

    Raises:
        GuidedCDError: It cannot be called, or its source cannot be read.
    """
    if kind not in KINDS:
        raise GuidedCDError(f"a {kind} is given by its name, not as a Python object (got {value!r}).")
    if not callable(value):
        raise GuidedCDError(f"{kind} '{name}' must be a name, a table of options, or callable (got {value!r}).")
    defined = value if inspect.isroutine(value) or inspect.isclass(value) else type(value)
    try:
        source = inspect.getsource(defined)
    except (OSError, TypeError):
        raise GuidedCDError(
            f"the source of {kind} '{name}' cannot be read, so that a change of it would not be noticed: "
            "define it in a file."
        ) from None
    options = {
        MARK: f"{defined.__module__}.{defined.__qualname__}",
        "source_digest": digest([source, _state(value)])[:16],
        "source": source,
    }
    _OBJECTS[kind, name, options["source_digest"]] = value
    return options


def _state(value: Any) -> dict[str, str]:
    """Plain values that the object depends on besides its source: attributes, defaults and captured variables."""
    names = dict(vars(value)) if hasattr(value, "__dict__") and not inspect.isclass(value) else {}
    if inspect.isfunction(value):
        captured = inspect.getclosurevars(value)
        names |= {**captured.globals, **captured.nonlocals}
        names |= {f"default {number}": default for number, default in enumerate(value.__defaults__ or ())}
        names |= value.__kwdefaults__ or {}
    plain_types = (bool, int, float, str, tuple, type(None))
    return {name: repr(item) for name, item in sorted(names.items()) if isinstance(item, plain_types)}


@attrs.frozen
class ObjectComponent(Component):
    """An object as a component, which only the program that defines it can build."""

    source_digest: str = ""

    def __str__(self) -> str:
        return f"{self.kind} '{self.name}' of {self.target}"

    def load(self) -> Callable[..., Any]:
        """A function from the config to the object.

        Raises:
            GuidedCDError: This process does not have the object.
        """
        key = (self.kind, self.name, self.source_digest)
        if key not in _OBJECTS:
            raise GuidedCDError(
                f"{self.kind} '{self.name}' is the Python object {self.target} with the source recorded in run.json, "
                "which this process does not have: start from the program that defines it, through Run.from_profile."
            )
        value: Any = _OBJECTS[key]
        if inspect.isclass(value):
            build: Callable[..., Any] = value
            return build if _is_complete(self.kind, value) else lambda config: _adapted(self.kind, build(config))
        return lambda config: _adapted(self.kind, value)


def component(kind: str, name: str, config: ComponentConfig | None = None) -> ObjectComponent:
    """The component of the object called `name`, whose `config` has its source."""
    target, source = getattr(config, MARK, ""), getattr(config, "source_digest", "")
    return ObjectComponent(kind, name, target, config_class(kind), "this program", source_digest=source)


def _adapted(kind: str, value: Any) -> Any:
    """The object itself if it has every attribute that the engine reads of its kind, else a wrapper that has."""
    return value if _is_complete(kind, value) else _Adapter(value, _DEFAULTS[kind])


def _is_complete(kind: str, value: Any) -> bool:
    return all(hasattr(value, name) for name in _DEFAULTS.get(kind, ()))


class _Adapter:
    """A callable with the attributes of a component: its own, and a default for each that it lacks."""

    _value: Any
    _defaults: Mapping[str, Any]

    def __init__(self, value: Any, defaults: Mapping[str, Any]) -> None:
        """Wrap `value`, which lacks some of the attributes in `defaults`."""
        vars(self).update(_value=value, _defaults=defaults)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the wrapped object."""
        return self._value(*args, **options)

    def __getattr__(self, name: str) -> Any:
        if name in self._defaults and not hasattr(self._value, name):
            return self._defaults[name]
        return getattr(self._value, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._value, name, value)

    def to(self, *args: Any, **options: Any) -> _Adapter:
        """Move the wrapped object, if it has something to move; returns this wrapper."""
        if hasattr(self._value, "to"):
            self._value.to(*args, **options)
        return self


def _word_count(text: str) -> int:
    return len(text.split())


_DEFAULTS: dict[str, dict[str, Any]] = {
    "energy": {"needs": ()},
    "reward": {"to": None, "max_tokens": sys.maxsize, "count_tokens": _word_count},
}
"""Attributes that the engine reads of a kind, with their defaults: a function reads captions of any length."""
