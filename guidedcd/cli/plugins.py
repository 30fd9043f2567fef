"""`guidedcd plugins`: list, show and check the installed components, and write a new plugin."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from unittest import SkipTest

import attrs
from cyclopts import App, Parameter
from rich.markup import escape

from guidedcd.config.kinds import KINDS
from guidedcd.config.reflection import docs_of, flag, limits, positional
from guidedcd.console import console, print_table
from guidedcd.errors import GuidedCDError, suggest
from guidedcd.plugins.registry import Component, Registry
from guidedcd.plugins.requirements import requirements

if TYPE_CHECKING:
    from rich.table import Table


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
            Check only this component, including its behaviour.
        verbose
            Show tracebacks.
        """
        return _doctor(name, registry, verbose)

    @plugins.command
    def new(kind: Literal["energy", "reward", "route"], name: str, /, *, out: Path | None = None) -> None:
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
        console.print(f"wrote    {folder}")
        console.print(f"next     pip install -e {folder} && guidedcd plugins list")


def _list(registry: Registry) -> None:
    """Print one line per component, and one per plugin that did not load."""
    table = _table("kind", "name", "summary", "plugin", "version")
    for c in sorted(registry.components, key=lambda c: (list(KINDS.values()).index(c.kind), c.name, c.plugin)):
        table.add_row(c.kind, c.name, escape(c.summary), c.plugin, c.version)
    print_table(table)
    for failure in registry.failures:
        console.print(f"[dim]{failure.plugin} {failure.version} did not load; see `guidedcd plugins doctor`[/]")


def _doctor(name: str | None, registry: Registry, verbose: bool) -> int:
    """Run the checks of all components, or those of one and its behaviour; returns 1 if one failed, else 0."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a check must not download weights
    from guidedcd.testing import checks_of

    failures = 0
    for failure in registry.failures if name is None else ():
        failures += 1
        _wrong(f"{failure.plugin} {failure.version}", failure.error, verbose)
    components = registry.components if name is None else _named(name, registry)
    for distribution, missing in requirements(c.plugin for c in components).items():
        for text in missing:
            failures += 1
            console.print(f"[red]wrong[/] {distribution}: {escape(text)}")
    for component in components:
        passed, skipped, failed = 0, "", 0
        for check in checks_of(component, behaviour=name is not None):
            try:
                check()
                passed += 1
            except SkipTest as reason:
                skipped = f"; others were skipped: {reason}"
            except (Exception, SystemExit) as error:
                failed += 1
                _wrong(f"{component}: {check.description}", error, verbose)
        if not failed:
            console.print(f"[green]ok[/]    {component}: {passed} checks passed{escape(skipped)}")
        failures += failed
    return int(failures > 0)


def _named(name: str, registry: Registry) -> list[Component]:
    """The components of any kind called `name`."""
    components = [component for component in registry.components if component.name == name]
    if not components:
        names = sorted({component.name for component in registry.components})
        broken = ", ".join(failure.plugin for failure in registry.failures)
        note = f" Not loaded: {broken}. See `guidedcd plugins doctor`." if broken else ""
        raise GuidedCDError(
            f"no component named '{name}'.{suggest(name, names)} Known: {', '.join(names) or 'none'}.{note}"
        )
    return components


def _wrong(what: str, error: BaseException, verbose: bool) -> None:
    text = " ".join(str(error).split()) or "no message"
    console.print(f"[red]wrong[/] {escape(what)}: {type(error).__name__}: {escape(text)}")
    if verbose:
        console.print("".join(traceback.format_exception(error)), markup=False, style="dim")


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column not in ("summary", "meaning"))
    return table


def _show(component: Component) -> None:
    key = next(key for key, kind in KINDS.items() if kind == component.kind)
    value = positional(component.config)
    console.print(f"[bold]{component.kind} {component.name}[/]  {escape(component.summary)}")
    console.print(f"  plugin    {component.plugin} {component.version}")
    console.print(f"  target    {component.target}")
    spelling = f"{component.name}[:{value.name.upper()}]" if value else component.name
    console.print(f"  select    --{key} {spelling}   or   [{key}.{component.name}] in a --config file", markup=False)
    if not attrs.fields(component.config):
        console.print("  options   none\n")
        return
    table = _table("  option", "default", "meaning")
    docs = docs_of(component.config)
    for field in attrs.fields(component.config):
        default = getattr(component.config(), field.name)
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
        range_ = f" [{limits(field)}]" if limits(field) else ""
        meaning = docs.get(field.name, "") + range_
        table.add_row(f"  --{key}.{component.name}.{flag(field.name)}", escape(shown), escape(meaning))
    print_table(table)
    console.print()
