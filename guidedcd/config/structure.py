"""Plain values from flags, TOML and JSON to config objects, with errors that name place and value. No torch."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from guidedcd.config.option_types import flag, groups_of, limits, types_of
from guidedcd.errors import GuidedCDError, option_name, refusal, shown, suggest


@attrs.frozen
class Value:
    """A value that the user wrote, and its place: "--train.steps", or "train.steps in runs/mine.toml"."""

    value: Any
    where: str


Options = dict[str, "Value | Options"]
"""Values by option; those of a group of options, such as `train.optimizer`, by its name."""


def structure(cls: type, options: Mapping[str, Value | Options], what: str) -> Any:
    """An instance of the config class `cls`; what `options` does not mention keeps its default.

    Args:
        cls: An attrs class with a default for every field; a field whose type is such a class is a group of options.
        options: By field name ("-" and "_" are the same).
        what: What the class configures, for messages: "energy 'pta'" or "[train]".

    Raises:
        GuidedCDError: An unknown field (with a suggestion), a value of the wrong type or out of range.
    """
    fields = {field.name: field for field in attrs.fields(cls) if field.init}
    hints, groups = types_of(cls), groups_of(cls)
    values: dict[str, Any] = {}
    for key, one in options.items():
        name = key.replace("-", "_")
        if not isinstance(one, Value):
            values[name] = structure(groups[name], one, f"[{what.strip('[]')}.{name}]")
            continue
        if name not in fields:
            names = [option_name(field.name) for field in fields.values() if not field.metadata.get("recorded")]
            raise GuidedCDError(
                f"{one.where}: {what} has no option '{key}'.{suggest(option_name(key), names)} "
                f"Known: {', '.join(names) or 'none'}."
            )
        values[name] = convert(one.value, hints[name], one.where)
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        raise GuidedCDError(_readable(error, cls, options, values, what)) from error


def _readable(
    error: Exception, cls: type, options: Mapping[str, Value | Options], values: Mapping[str, Any], what: str
) -> str:
    """A validator's message, with the field's name replaced by the place where its value was written."""
    text = str(error.args[0] if error.args else error)
    for key, one in options.items():
        name = key.replace("-", "_")
        if isinstance(one, Value) and text.startswith(f"'{name}'"):
            accepted = limits(getattr(attrs.fields(cls), name))
            return refusal(one.where, values[name], accepted) if accepted else one.where + text[len(name) + 2 :]
    return f"{what}: {text}"


def convert(value: Any, hint: Any, where: str) -> Any:
    """`value`, typed as in a file or the text of a flag, as the type `hint`.

    Raises:
        GuidedCDError: It cannot be read as that type.
    """
    if hint is Any or hint is None or isinstance(hint, str):
        return value
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return convert(value, args[0], where)
    if origin in (typing.Union, types.UnionType):
        return _union(value, args, where)
    if origin is typing.Literal:
        if value not in args:
            raise GuidedCDError(refusal(where, value, f"one of {', '.join(map(str, args))}"))
        return value
    if origin in (tuple, list, frozenset, set):
        return _many(value, origin, args, where)
    if origin is dict:
        return _by_name(value, args[1], where)
    if hint in _SCALARS:
        return _SCALARS[hint](value, where)
    return value


def _union(value: Any, options: tuple[Any, ...], where: str) -> Any:
    if type(None) in options and (value is None or (isinstance(value, str) and value.lower() in ("none", "null"))):
        return None
    rest = [option for option in options if option is not type(None)]
    for option in rest[:-1]:
        try:
            return convert(value, option, where)
        except GuidedCDError:
            continue
    return convert(value, rest[-1], where)


def _many(value: Any, origin: type, args: tuple[Any, ...], where: str) -> Any:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")] if value.strip() else []
    if not isinstance(value, list | tuple | set | frozenset):
        raise GuidedCDError(refusal(where, value, "a list, such as 5,15"))
    fixed = origin is tuple and args and args[-1] is not Ellipsis
    if fixed and len(value) != len(args):
        listed = shown(value if isinstance(value, list) else list(value))
        count = f"{len(value)} value{'s' * (len(value) != 1)}"
        raise GuidedCDError(f"{where} has {count}, {listed}; it must have {len(args)}, such as 5,15.")
    element = args[0] if args else Any
    hints = args if fixed else [element] * len(value)
    return origin(convert(one, hint, where) for one, hint in zip(value, hints, strict=True))


def _by_name(value: Any, hint: Any, where: str) -> dict[str, Any]:
    numbers = value
    if isinstance(value, str):
        pairs = [part.rpartition("=") for part in value.split(",")]
        numbers = {name.strip(): text for name, _, text in pairs}
    if not isinstance(numbers, Mapping) or "" in numbers:
        raise GuidedCDError(refusal(where, value, "a finite number, or numbers by name such as pta=0.3"))
    return {name: convert(one, hint, f"{where} {name}") for name, one in numbers.items()}


def _float(value: Any, where: str) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError):
        raise GuidedCDError(refusal(where, value, "a number")) from None
    if not math.isfinite(number):
        raise GuidedCDError(refusal(where, value, "a finite number"))
    return number


def _int(value: Any, where: str) -> int:
    try:
        if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
            raise ValueError
        return int(value.replace("_", "")) if isinstance(value, str) else int(value)
    except (TypeError, ValueError, OverflowError):
        raise GuidedCDError(refusal(where, value, "a whole number")) from None


def _bool(value: Any, where: str) -> bool:
    if isinstance(value, str) and value.lower() in _TRUTH:
        return _TRUTH[value.lower()]
    if not isinstance(value, bool):
        raise GuidedCDError(refusal(where, value, "true or false"))
    return value


def _str(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise GuidedCDError(refusal(where, value, "text"))
    return value


def _path(value: Any, where: str) -> Path:
    if not (text := _str(value, where)):
        raise GuidedCDError(f"{where} is empty; it must be the path of a file or folder.")
    return Path(text).expanduser()


_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


_SCALARS: dict[Any, Callable[[Any, str], Any]] = {float: _float, int: _int, bool: _bool, str: _str, Path: _path}


def options_of(cls: type, options: Mapping[str, Any], what: str, mark: str = "") -> dict[str, Any]:
    """Options of the config class `cls`, checked and with their types.

    Args:
        cls: An attrs class with a default for every field.
        options: By field name, as a program gives them or as flags are typed.
        what: What they are options of, for messages: "an evaluation".
        mark: What precedes an option's name in messages, "--" for flags.

    Raises:
        GuidedCDError: An unknown option, a value of the wrong type or out of range.
    """
    named = {name: Value(value, f"{mark}{flag(name) if mark else name}") for name, value in options.items()}
    config = structure(cls, named, what)
    return {name: getattr(config, name) for name in options}


def changed(config: Any, **options: Any) -> Any:
    """A copy of a config with other values: changed(run.train, steps=5, optimizer={"lr": 1e-4}).

    Args:
        config: An attrs object.
        **options: By field; a mapping for a group of options changes these and leaves the others.
    """
    groups = {
        name for name, value in options.items() if isinstance(value, Mapping) and attrs.has(type(getattr(config, name)))
    }
    new = {
        name: changed(getattr(config, name), **value) if name in groups else value for name, value in options.items()
    }
    return attrs.evolve(config, **new)


def unstructure(config: Any) -> dict[str, Any]:
    """A config as JSON values: tuples and sets become lists, paths become text."""
    return {field.name: _unstructured(getattr(config, field.name)) for field in attrs.fields(type(config))}


def _unstructured(value: Any) -> Any:
    if attrs.has(type(value)):
        return unstructure(value)
    if isinstance(value, Mapping):
        return {str(key): _unstructured(one) for key, one in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(_unstructured, value))
    if isinstance(value, list | tuple):
        return [_unstructured(one) for one in value]
    return str(value) if isinstance(value, Path) else value
