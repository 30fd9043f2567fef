"""Conformance checks for components, used in plugin authors' tests and by `guidedcd plugins doctor`.

In: a component's kind and name. Out: a list of `Check`s, functions without arguments that raise AssertionError.

    @pytest.mark.parametrize("check", checks("energy", "jerk"), ids=str)
    def test_conformance(check):
        check()

`rules` lists the rules of each kind, `tiny_teacher` has the small teacher that they run on.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import attrs

from guidedcd.config.reflection import docs_of
from guidedcd.files import child_environment
from guidedcd.plugins.optional import misspelt_attributes, misspelt_options
from guidedcd.plugins.registry import Component, load_plugins
from guidedcd.testing.subject import Subject

HEAVY = ("torch", "diffusers", "transformers", "open_clip")
"""Packages that registering a component must not import, because `guidedcd --help` waits for every plugin."""


@attrs.frozen
class Check:
    """One rule for one component; calling it raises AssertionError with an explanation if the rule is broken."""

    subject: Subject
    rule: Callable[[Subject], None]

    def __call__(self) -> None:
        """Check the rule."""
        self.rule(self.subject)

    def __str__(self) -> str:
        return f"{self.subject.component.name}-{self.rule.__name__}"

    @property
    def description(self) -> str:
        """The rule as a sentence."""
        return (self.rule.__doc__ or self.rule.__name__).splitlines()[0].rstrip(".")


def checks(kind: str, name: str, *, config: Any = None) -> list[Check]:
    """All checks of one installed component.

    Args:
        kind: "energy", "reward", "route", "teacher", "dataset" or "metric".
        name: Its registered name.
        config: Its options, needed if the defaults refer to files that do not exist.
    """
    return checks_of(load_plugins().get(kind, name), config=config)


def checks_of(component: Component, *, config: Any = None, behaviour: bool = True) -> list[Check]:
    """All checks of a component, or without `behaviour` those that run no model."""
    subject = Subject(component, config)
    rules: list[Callable[[Subject], None]] = [
        offering_is_light,
        config_is_sound,
        options_are_spelt_right,
        target_is_importable,
    ]
    if behaviour:
        from guidedcd.testing.rules import RULES

        rules += [attributes_are_spelt_right, *RULES[component.kind]]
    return [Check(subject, rule) for rule in rules]


def offering_is_light(subject: Subject) -> None:
    """Registering it imports no large package."""
    module = subject.component.config.__module__
    heavy = _imported_with(module, os.pathsep.join(p for p in sys.path if p))
    assert not heavy, f"importing {module} imports {heavy}; move that code to the module named in the target"


@cache
def _imported_with(module: str, path: str) -> str:
    """The names of HEAVY that a new Python process imports with `module`, cached for all components of a plugin."""
    code = f"import sys, {module}; sys.exit(' '.join(m for m in {HEAVY!r} if m in sys.modules) or None)"
    environment = child_environment() | {"PYTHONPATH": path}
    process = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment)
    return process.stderr.strip()


def config_is_sound(subject: Subject) -> None:
    """Its config is a frozen attrs class, and every field has a default and a docstring."""
    cls = subject.component.config
    config = cls()
    docs = docs_of(cls)
    for field in attrs.fields(cls):
        try:
            setattr(config, field.name, getattr(config, field.name))
        except attrs.exceptions.FrozenInstanceError:
            pass
        else:
            raise AssertionError(f"{cls.__name__} is not frozen: use @attrs.frozen(kw_only=True)")
        assert docs.get(field.name), f"{cls.__name__}.{field.name} has no docstring, which `--help` shows"


def options_are_spelt_right(subject: Subject) -> None:
    """No option nearly has the name of one that the engine reads."""
    config = subject.component.config
    for option, name in misspelt_options(subject.component.kind, config).items():
        raise AssertionError(f"the engine does not read {config.__name__}.{option}. Did you mean '{name}'?")


def attributes_are_spelt_right(subject: Subject) -> None:
    """No attribute nearly has the name of an optional one that the engine reads."""
    kind, component = subject.component.kind, subject.built
    texts = [("text encoder", component.text)] if kind == "teacher" and hasattr(component, "text") else []
    for what, owner in [(kind, component), *texts]:
        for attribute, name in misspelt_attributes(what, owner).items():
            raise AssertionError(f"the engine does not read {type(owner).__name__}.{attribute}. Did you mean '{name}'?")


def target_is_importable(subject: Subject) -> None:
    """Its target can be imported and called."""
    target = subject.component.load()
    assert callable(target), f"{subject.component.target} is neither a class nor a function"
