"""Conformance checks for components, used in plugin authors' tests and by `guidedcd plugins doctor`.

In: a component's kind and name. Out: a list of `Check`s, functions without arguments that raise AssertionError.

    @pytest.mark.parametrize("check", checks("energy", "jerk"), ids=str)
    def test_conformance(check):
        check()

`rules` lists the rules of each kind, `tiny_teacher` has the small teacher that they run on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from unittest import SkipTest

import attrs

from guidedcd.docstrings import docs_of
from guidedcd.errors import described
from guidedcd.plugins.mistakes import config_faults
from guidedcd.plugins.one_file import DISTRIBUTION
from guidedcd.plugins.optional import misspelt_attributes, misspelt_options
from guidedcd.plugins.probe import probe
from guidedcd.plugins.registry import Component, entry_points, load_plugins
from guidedcd.testing.checked_component import CheckedComponent

Rule = Callable[[CheckedComponent], None]


@attrs.frozen
class Check:
    """One rule for one component; calling it raises AssertionError with an explanation if the rule is broken."""

    checked: CheckedComponent
    rule: Rule
    is_basic: bool = False
    """Whether the rules of behaviour cannot hold without this one."""
    needs_result: bool = False
    """Whether the rule runs the component."""

    def __call__(self) -> None:
        """Check the rule."""
        self.rule(self.checked)

    def __str__(self) -> str:
        return f"{self.checked.component.name}-{self.rule.__name__}"

    @property
    def description(self) -> str:
        """The rule as a sentence."""
        return (self.rule.__doc__ or self.rule.__name__).splitlines()[0].rstrip(".")


def checks(kind: str, name: str, *, config: Any = None) -> list[Check]:
    """All checks of one installed component.

    Args:
        kind: "energy", "reward", "route", "teacher", "dataset", "metric" or "suite".
        name: Its registered name.
        config: Its options, needed if the defaults refer to files that do not exist.
    """
    return checks_of(load_plugins().get(kind, name), config=config)


def checks_of(
    component: Component, *, config: Any = None, behaviour: bool = True, installation: bool = True
) -> list[Check]:
    """All checks of a component.

    Args:
        component: The component.
        config: Its options; None for the defaults.
        behaviour: Whether to include the rules that run the component.
        installation: Whether to include the rules about the import of its plugin, which take a new process.
    """
    checked = CheckedComponent(component, config)
    rules: list[Rule] = [offering_is_light] if installation else []
    rules += [config_is_sound, options_are_spelt_right, target_is_importable]
    if behaviour:
        from guidedcd.testing.rules import RULES

        own = [building_leaves_the_process_alone, attributes_are_spelt_right, *RULES[component.kind]]
        rules += [component_can_be_built, *own]
        basic = (target_is_importable, component_can_be_built, RULES[component.kind][0])
        needing = (component_can_be_built, *own)
        return [Check(checked, rule, is_basic=rule in basic, needs_result=rule in needing) for rule in rules]
    return [Check(checked, rule) for rule in rules]


@attrs.frozen
class CheckResult:
    """The outcome of one check."""

    check: Check
    status: str
    """"passed", "failed" or "skipped"."""
    reason: str = ""
    """Why it failed or was skipped, as a sentence."""
    error: BaseException | None = None
    """What it raised."""


def run_checks(checks: Iterable[Check]) -> list[CheckResult]:
    """Run checks in order.

    If the component cannot be built, or the first rule of its kind fails, the rules of behaviour after it are skipped,
    because they would fail for the same reason.
    """
    results: list[CheckResult] = []
    stopped = ""
    for check in checks:
        if stopped and check.needs_result:
            results.append(CheckResult(check, "skipped", f"it failed: {stopped}"))
            continue
        try:
            check()
            results.append(CheckResult(check, "passed"))
        except SkipTest as skip:
            results.append(CheckResult(check, "skipped", str(skip)))
        except (Exception, SystemExit) as error:
            text = str(error) if isinstance(error, AssertionError) else described(error)
            reason = " ".join(text.split()) or type(error).__name__
            results.append(CheckResult(check, "failed", reason, error))
            if check.is_basic:
                stopped = check.description
    return results


def offering_is_light(checked: CheckedComponent) -> None:
    """Importing its plugin is quick, prints nothing and imports no large package."""
    component = checked.component
    if component.plugin.startswith(f"{DISTRIBUTION}/"):
        raise SkipTest("only commands that name a plugin file import it")
    module = next(
        (entry.module for id_, _, entry in entry_points() if id_ == component.plugin), component.config.__module__
    )
    one = probe(module)
    complaints = [one.death] if one.death else one.complaints(module)
    assert not complaints, "; ".join(complaints)


def config_is_sound(checked: CheckedComponent) -> None:
    """Its config is a frozen attrs class, and every field has a default and a docstring."""
    cls = checked.component.config
    for text in config_faults(cls):
        raise AssertionError(text)
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


def component_can_be_built(checked: CheckedComponent) -> None:
    """It can be built from its options."""
    assert checked.built is not None, f"{checked.component.target} returned None"


def building_leaves_the_process_alone(checked: CheckedComponent) -> None:
    """Importing and building it leaves the working directory, torch's seed and torch's defaults as they are."""
    assert checked.built is not None and not checked.changes, "; ".join(checked.changes)


def options_are_spelt_right(checked: CheckedComponent) -> None:
    """No option nearly has the name of one that the engine reads."""
    config = checked.component.config
    for option, name in misspelt_options(checked.component.kind, config).items():
        raise AssertionError(f"the engine does not read {config.__name__}.{option}. Did you mean '{name}'?")


def attributes_are_spelt_right(checked: CheckedComponent) -> None:
    """No attribute nearly has the name of an optional one that the engine reads."""
    kind, component = checked.component.kind, checked.built
    texts = [("text encoder", component.text)] if kind == "teacher" and hasattr(component, "text") else []
    for what, owner in [(kind, component), *texts]:
        for attribute, name in misspelt_attributes(what, owner).items():
            raise AssertionError(f"the engine does not read {type(owner).__name__}.{attribute}. Did you mean '{name}'?")


def target_is_importable(checked: CheckedComponent) -> None:
    """Its target can be imported and called."""
    with checked.recording_changes():
        target = checked.component.load()
    assert callable(target), f"{checked.component.target} is neither a class nor a function"
