"""`guidedcd plugins`: list, show and check the installed components, and write a new plugin."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated, Any, Literal

import attrs
from cyclopts import App, Parameter
from rich.markup import escape

from guidedcd.cli.flag_types import PathFlag
from guidedcd.config.kinds import ALL_KINDS
from guidedcd.config.merge import choose
from guidedcd.config.option_types import flag, limits, naming, positional
from guidedcd.config.sources import profiles, read_profile
from guidedcd.console import console, plain_table, print_table
from guidedcd.docstrings import docs_of
from guidedcd.errors import GuidedCDError, PluginError, described, suggest
from guidedcd.plugins.registry import BLOCK, OUTPUT, Component, Registry, entry_points, how_to_block
from guidedcd.plugins.requirements import requirements

if TYPE_CHECKING:
    from rich.table import Table

    from guidedcd.testing import CheckResult


def add(app: App, registry: Registry, flags_class: Any) -> None:
    """Add the commands to `app`."""
    plugins = App(name="plugins", help="List, check and write plugins.")
    app.command(plugins)

    @plugins.command(name="list")
    def list_() -> None:
        """List the components of all installed plugins, without importing their code."""
        _list(registry)

    @plugins.command
    def show(name: str, /) -> None:
        """Show one component: its plugin, and the default and meaning of every option.

        Parameters
        ----------
        name
            Name of the component, such as `pta`.
        """
        for component in _named(name, registry):
            _show(component)

    @plugins.command
    def doctor(
        name: str | None = None,
        /,
        *,
        verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], negative="")] = False,
    ) -> int:
        """Check that every plugin loads quickly and that its requirements are installed; exit with 1 if not.

        Parameters
        ----------
        name
            Check only this component, NAME or NAME:VALUE, including its behaviour.
        verbose
            Show tracebacks.
        """
        return _doctor(name, registry, verbose)

    @plugins.command
    def check(name: str, /, *, json: Annotated[bool, Parameter(negative="")] = False) -> int:
        """Print each conformance check of one component and its result; exit with 1 if one failed.

        Parameters
        ----------
        name
            Name of the component, such as `pta`, or NAME:VALUE, such as `reward:clip`.
        json
            Print one JSON list instead of a table.
        """
        return _check(name, registry, json)

    @plugins.command
    def new(
        kind: Literal["energy", "reward", "route", "teacher", "dataset", "metric", "suite"],
        name: str,
        /,
        *,
        out: PathFlag = None,
    ) -> None:
        """Write a new package with one component and a test that checks it.

        Parameters
        ----------
        kind
            Kind of the component.
        name
            Name of the component: lower-case words joined by "-".
        out
            Folder of the package; the default is guidedcd-NAME.
        """
        from guidedcd.plugins.scaffold.render import write

        folder = write(kind, name, out)
        for component in registry.components:
            if (component.kind, component.name) == (kind, name):
                console.print(f"warning  {component} has this name already; choose another, or block one of the two")
        console.print(f"wrote    {folder}")
        console.print(f"next     pip install -e {folder} && guidedcd plugins list")


def _list(registry: Registry) -> None:
    """Print one line per component, and one per plugin that did not load or that its author should repair."""
    table = _table("kind", "name", "summary", "plugin", "version")
    for c in sorted(registry.components, key=lambda c: (list(ALL_KINDS.values()).index(c.kind), c.name, c.plugin)):
        table.add_row(c.kind, c.name, escape(c.summary), c.plugin, c.version)
    print_table(table)
    for name, plugins in registry.contested():
        console.print(f"[dim]{name} is offered by {' and '.join(plugins)}; see `guidedcd plugins doctor`[/]")
    for failure in registry.failures:
        console.print(f"[dim]{failure.plugin} {failure.version} did not load; see `guidedcd plugins doctor`[/]")
    for note in registry.notes:
        console.print(f"{note.plugin}: {note.text}", style="dim", markup=False)


def _doctor(name: str | None, registry: Registry, verbose: bool) -> int:
    """Run the checks of all components, or those of one and its behaviour; returns 1 if one failed, else 0."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a check must not download weights
    named = [] if name is None else _checked(name, registry)
    components = registry.components if name is None else [component for component, _ in named]
    wrong = _installation_faults(registry, {c.plugin for c in components}, everything=name is None, verbose=verbose)
    for component, config in named or [(component, None) for component in components]:
        wrong += _component_faults(component, config, behaviour=name is not None, verbose=verbose)
    if name is None:
        console.print("note     `guidedcd plugins doctor NAME` also runs the code of a component: its result, gradient")
        console.print("         and other rules of its kind")
    return int(wrong > 0)


def _check(name: str, registry: Registry, as_json: bool) -> int:
    """Print the conformance table of the components called `name`; returns 1 if a check failed, else 0."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    rows = [
        {
            "kind": component.kind,
            "name": component.name,
            "plugin": component.plugin,
            "check": result.check.rule.__name__,
            "description": result.check.description,
            "status": result.status,
            "reason": result.reason,
        }
        for component, config in _checked(name, registry)
        for result in _results(component, config)
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        table = _table("status", "kind", "check", "meaning", "reason")
        for row in rows:
            table.add_row(*(escape(row[key]) for key in ("status", "kind", "check", "description", "reason")))
        print_table(table)
    return int(any(row["status"] == "failed" for row in rows))


def _results(component: Component, config: Any) -> list[CheckResult]:
    """The results of all checks of a component, which may print."""
    from guidedcd.testing import checks_of, run_checks

    with redirect_stdout(sys.stderr):
        return run_checks(checks_of(component, config=config))


def _installation_faults(registry: Registry, plugins: set[str], *, everything: bool, verbose: bool) -> int:
    """Print what is wrong with how plugins load and what they require; returns the number of faults."""
    from guidedcd.plugins.probe import probe

    faults = []
    for failure in registry.failures if everything else ():
        _wrong(f"{failure.plugin} {failure.version}", failure.error, verbose)
        faults.append(failure.plugin)
    for contested, offering in registry.contested():
        if plugins & set(offering):
            faults.append(_report(contested, f"{' and '.join(offering)} offer it. {how_to_block(offering)}"))
    for distribution, missing in requirements(plugins).items():
        faults += [_report(distribution, text) for text in missing]
    modules = {id_: entry.module for id_, _, entry in entry_points() if id_ in plugins}
    for plugin in sorted(plugins):
        texts = probe(modules[plugin]).complaints(modules[plugin]) if plugin in modules else []
        faults += [_report(plugin, text) for text in texts]
    faults += [_report(n.plugin, n.text) for n in registry.notes if n.plugin in plugins and n.plugin not in modules]
    for note in registry.notes:
        if note.plugin == BLOCK and everything:
            console.print(f"note     {note.plugin}: {note.text}", markup=False)
    return len(faults)


def _report(what: str, text: str) -> str:
    console.print(f"[red]wrong[/] {escape(what)}: {escape(text)}")
    return what


def _component_faults(component: Component, config: Any = None, *, behaviour: bool, verbose: bool) -> int:
    """Run the checks of one component, and print its faults, each cause once; returns their number."""
    from guidedcd.testing import checks_of, run_checks

    results = run_checks(checks_of(component, config=config, behaviour=behaviour, installation=False))
    causes: set[str] = set()
    for result in results:
        if result.error is not None and result.reason not in causes:
            causes.add(result.reason)
            _wrong(f"{component}: {result.check.description}", result.error, verbose)
    passed = sum(result.status == "passed" for result in results)
    skipped = [result.reason for result in results if result.status == "skipped"]
    if not causes:
        note = f"; {len(skipped)} were skipped: {skipped[0]}" if skipped else ""
        console.print(f"[green]ok[/]    {component}: {passed} checks passed{escape(note)}")
    elif skipped:
        console.print(f"[dim]note  {component}: {len(skipped)} more checks run once these pass[/]")
    return len(causes)


def _named(name: str, registry: Registry) -> list[Component]:
    """The components of any kind called `name`."""
    components = [component for component in registry.components if component.name == name]
    if not components:
        names = sorted({component.name for component in registry.components})
        installed = ", ".join(names) or "none"
        raise GuidedCDError(
            f"no component named '{name}'.{suggest(name, names)} Known: {installed}.{registry.not_loaded()}"
        )
    return components


def _checked(text: str, registry: Registry) -> list[tuple[Component, Any]]:
    """The components that `text`, NAME or NAME:VALUE, names, each with its options; None for the defaults.

    Raises:
        GuidedCDError: There is none, or it takes no value.
    """
    name, colon, _ = text.partition(":")
    components = _named(name, registry)
    if not colon:
        return [(component, None) for component in components]
    if len({component.kind for component in components}) > 1:  # `reward` is an energy, `energy` a reward
        valued = [component for component in components if positional(component.config) is not None]
        components = valued or components
    return [(component, choose(component.kind, text, {}, text, registry).config) for component in components]


def _wrong(what: str, error: BaseException, verbose: bool) -> None:
    if isinstance(error, PluginError):  # its own sentence names the plugin again
        cause = error.__cause__
        text = str(error) if cause is None else described(cause)
    else:
        text = str(error) if isinstance(error, AssertionError) else described(error)
    printed = "".join(f"; {note}" for note in getattr(error, "__notes__", ()) if note.startswith(OUTPUT))
    console.print(f"[red]wrong[/] {escape(what)}: {escape(' '.join(text.split()) or 'no message')}{escape(printed)}")
    if verbose:
        console.print("".join(traceback.format_exception(error)), markup=False, style="dim")


def _table(*columns: str) -> Table:
    return plain_table(*columns, unbroken=set(columns) - {"summary", "meaning"})


def _values_of_profiles(key: str, name: str) -> Iterator[tuple[str, str]]:
    """Each profile with own values of a component's options, and these values."""
    for profile in sorted(profiles()):
        for component, options in read_profile(profile).options.get(key, []):
            if component == name and options:
                yield profile, ", ".join(f"{flag(option)} {value.value}" for option, value in options.items())


def _show(component: Component) -> None:
    key = next(key for key, kind in ALL_KINDS.items() if kind == component.kind)
    value = positional(component.config)
    console.print(f"[bold]{component.kind} {component.name}[/]  {escape(component.summary)}")
    console.print(f"  plugin    {component.plugin} {component.version}")
    console.print(f"  target    {component.target}")
    spelling = f"{component.name}[:{value.name.upper()}]" if value else component.name
    if naming(component.config):
        spelling = spelling.replace("[:", ":").rstrip("]")
    console.print(f"  select    --{key} {spelling}   or   [{key}.{component.name}] in a --config file", markup=False)
    if not attrs.fields(component.config):
        console.print("  options   none\n")
        return
    table = _table("  option", "default", "meaning")
    docs = docs_of(component.config)
    for field in (one for one in attrs.fields(component.config) if not one.metadata.get("recorded")):
        default = getattr(component.config(), field.name)
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
        range_ = f" [{limits(field)}]" if limits(field) else ""
        meaning = docs.get(field.name, "") + range_
        table.add_row(f"  --{key}.{component.name}.{flag(field.name)}", escape(shown), escape(meaning))
    print_table(table)
    for profile, values in _values_of_profiles(key, component.name):
        console.print(f"  profile   {profile} has {values} instead", markup=False)
    console.print()
