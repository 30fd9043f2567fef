"""State of the process that belongs to all its code: compared before and after a plugin's code, and restored.

No torch here: it has a state only where it is imported.
"""

from __future__ import annotations

import builtins
import contextlib
import locale
import os
import signal
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs


@attrs.frozen
class Part:
    """One part of the state."""

    name: str
    """As it appears in a sentence."""
    read: Callable[[], Any]
    restore: Callable[[Any], object]
    describe: Callable[[Any], str] | None = None
    """What differs now from a former state, in place of the name; "" if nothing does."""

    def difference(self, before: Any) -> str:
        """What differs now from a former state; "" if nothing does."""
        if self.describe is not None:
            return self.describe(before)
        return self.name if self.read() != before else ""


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # somebody has deleted it
        return None


def _enter(folder: str | None) -> None:
    if folder is not None:
        os.chdir(folder)


def _set_environment(before: dict[str, str]) -> None:
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    for name, value in before.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _changed_variables(before: dict[str, str]) -> str:
    names = sorted(name for name in before.keys() | os.environ.keys() if before.get(name) != os.environ.get(name))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"the environment variable {', '.join(names[:3])}{more}" if names else ""


def _set_path(before: list[str]) -> None:
    """The former folders come first; new ones remain behind them, because the plugin may need them."""
    sys.path[:] = [*before, *(path for path in sys.path if path not in before)]


def _warnings() -> tuple[list[Any], Any, Any]:
    return list(warnings.filters), warnings.showwarning, warnings.formatwarning


def _set_warnings(before: tuple[list[Any], Any, Any]) -> None:
    filters, warnings.showwarning, warnings.formatwarning = before
    warnings.filters[:] = filters  # type: ignore[index]  # a list, although typeshed has a sequence
    with warnings.catch_warnings():
        pass  # leaving this context makes Python read the filters again


def _handlers() -> tuple[Any, Any]:
    return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)


def _set_handlers(before: tuple[Any, Any]) -> None:
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        with contextlib.suppress(ValueError, TypeError):  # in a thread; a handler that C code set
            signal.signal(number, handler)


def _functions() -> list[tuple[Any, str, Any]]:
    """The functions, classes and methods that Python's builtins and guidedcd define: (owner, attribute, value)."""
    members: list[tuple[Any, str, Any]] = [(builtins, name, value) for name, value in vars(builtins).items()]
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] != "guidedcd":
            continue
        for name, value in list(vars(module).items()):
            if isinstance(value, (types.FunctionType, type)) and value.__module__ == module_name:
                members.append((module, name, value))
                if isinstance(value, type):
                    methods = vars(value).items()
                    members += [(value, key, one) for key, one in methods if isinstance(one, types.FunctionType)]
    return members


def _replaced(before: list[tuple[Any, str, Any]]) -> list[tuple[Any, str, Any]]:
    return [one for one in before if vars(one[0]).get(one[1]) is not one[2]]


def _set_functions(before: list[tuple[Any, str, Any]]) -> None:
    for owner, name, value in _replaced(before):
        setattr(owner, name, value)


def _replaced_functions(before: list[tuple[Any, str, Any]]) -> str:
    return ", ".join(f"{owner.__name__}.{name}" for owner, name, _ in _replaced(before)[:3])


def _torch() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_default_device"):  # absent, or being imported
        return {}
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradient mode": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "seed": (torch.initial_seed(), torch.get_rng_state()),
    }


def _set_torch(before: dict[str, Any]) -> None:
    if not before:
        return
    import torch

    torch.set_default_dtype(before["default dtype"])
    if torch.get_default_device() != before["default device"]:
        torch.set_default_device(before["default device"])
    torch.set_grad_enabled(before["gradient mode"])
    if torch.are_deterministic_algorithms_enabled() != before["deterministic algorithms"]:
        torch.use_deterministic_algorithms(before["deterministic algorithms"])  # its first call imports a compiler
    seed, numbers = before["seed"]
    if torch.initial_seed() != seed:  # a network that draws its initial weights leaves the seed as it is
        torch.set_rng_state(numbers)


def _torch_differences(before: dict[str, Any]) -> str:
    after = _torch()
    pairs = {name: (before[name], after[name]) for name in before if name in after}
    if "seed" in pairs:
        pairs["seed"] = (before["seed"][0], after["seed"][0])
    return ", ".join(f"torch's {name}" for name, (one, other) in pairs.items() if one != other)


FOLDER = Part("the working directory", _folder, _enter)
TORCH = Part("torch's defaults", _torch, _set_torch, _torch_differences)

NUMERIC = (FOLDER, TORCH)
"""What decides on results: the code of a component must leave it alone."""

WHOLE = (
    FOLDER,
    Part("the environment", lambda: dict(os.environ), _set_environment, _changed_variables),
    Part("sys.path", lambda: list(sys.path), _set_path),
    Part("sys.excepthook", lambda: sys.excepthook, lambda hook: setattr(sys, "excepthook", hook)),
    Part("the filters of warnings", _warnings, _set_warnings),
    Part("the handlers of signals", _handlers, _set_handlers),
    Part("the locale", lambda: locale.setlocale(locale.LC_ALL), lambda name: locale.setlocale(locale.LC_ALL, name)),
    Part("Python's recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    Part("functions of guidedcd or Python", _functions, _set_functions, _replaced_functions),
    TORCH,
)
"""What the import of a plugin must leave alone, which only registers components."""


@contextmanager
def restored(parts: Iterable[Part]) -> Iterator[list[str]]:
    """Restore parts of the state after this block; the list then has a phrase for each part that was changed."""
    before = [(part, part.read()) for part in parts]
    changed: list[str] = []
    try:
        yield changed
    finally:
        for part, value in before:
            if difference := part.difference(value):
                changed.append(difference)
                part.restore(value)
