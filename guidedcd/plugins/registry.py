"""Discover and load plugins, isolated from each other. No torch here."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import metadata
from typing import Any

import attrs
import pluggy

from guidedcd.errors import GuidedCDError, PluginError, described, suggest
from guidedcd.plugins import hookspecs, one_file
from guidedcd.plugins.calls import running
from guidedcd.plugins.configs import (
    DatasetConfig,
    EnergyConfig,
    MetricConfig,
    RewardConfig,
    RouteConfig,
    SuiteConfig,
    TeacherConfig,
)
from guidedcd.plugins.isolation import Import, guarded, is_known, isolated, remember
from guidedcd.plugins.mistakes import check_hooks, config_faults

GROUP = "guidedcd"
"""The group of entry points."""

BLOCK = "GUIDEDCD_BLOCK"
"""The environment variable with plugins to leave out, separated by commas."""

HOOKS = {
    "energy": "register_energies",
    "reward": "register_rewards",
    "route": "register_routes",
    "teacher": "register_teachers",
    "dataset": "register_datasets",
    "metric": "register_metrics",
    "suite": "register_suites",
}
"""The hook of each kind of component."""

CONFIGS = {
    "energy": EnergyConfig,
    "reward": RewardConfig,
    "route": RouteConfig,
    "teacher": TeacherConfig,
    "dataset": DatasetConfig,
    "metric": MetricConfig,
    "suite": SuiteConfig,
}
"""The base class of the config of each kind, whose fields the engine reads."""

OUTPUT = "before it failed, it printed: "
"""The begin of the note on an error with the last 200 characters that a plugin printed."""

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@attrs.frozen
class Component:
    """A registered component. Its code is imported by `load` only."""

    kind: str
    name: str
    target: str
    """The class or function that returns it, as "module:attribute"."""
    config: type
    plugin: str
    """Id of its plugin, "distribution/entry-point"."""
    version: str = ""
    """Version of the distribution."""
    summary: str = ""

    def __str__(self) -> str:
        return f"{self.kind} '{self.name}' of {self.plugin}"

    def load(self) -> Callable[..., Any]:
        """Import the target.

        Raises:
            PluginError: The import fails.
        """
        module, _, attribute = self.target.partition(":")
        try:
            with guarded(str(self)):
                return getattr(importlib.import_module(module), attribute)
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{self.kind} '{self.name}' of plugin '{self.plugin}' could not be imported from {self.target}: "
                f"{described(error)}. See `guidedcd plugins doctor -v`."
            ) from error

    def build(self, config: object | None = None, **arguments: Any) -> object:
        """Import the target and call it with `config`, or with the default options, and with further `arguments`.

        Raises:
            PluginError: The import fails, or the target ends the program.
        """
        target = self.load()
        with blame(str(self)), guarded(str(self)):
            return target(self.config() if config is None else config, **arguments)


@attrs.frozen
class Failure:
    """A plugin that could not be loaded, and why."""

    plugin: str
    version: str
    error: BaseException


@attrs.frozen
class Note:
    """Something about a plugin that loaded which its author should repair."""

    plugin: str
    text: str


@attrs.define
class Registry:
    """The components of all installed plugins, and the plugins that could not be loaded."""

    components: list[Component] = attrs.field(factory=list)
    failures: list[Failure] = attrs.field(factory=list)
    notes: list[Note] = attrs.field(factory=list)

    def contested(self) -> list[tuple[str, list[str]]]:
        """Kinds with names that several plugins use, such as "energy 'pta'", and these plugins."""
        plugins: dict[str, list[str]] = {}
        for component in self.components:
            plugins.setdefault(f"{component.kind} '{component.name}'", []).append(component.plugin)
        return [(name, ids) for name, ids in plugins.items() if len(ids) > 1]

    def not_loaded(self) -> str:
        """A note about the plugins that did not load, for the error about an unknown name; "" if all loaded."""
        broken = ", ".join(failure.plugin for failure in self.failures)
        return f" Not loaded: {broken}. See `guidedcd plugins doctor`." if broken else ""

    def of_kind(self, kind: str) -> dict[str, Component]:
        """The components of one kind by name; the first one if several plugins use the name."""
        components: dict[str, Component] = {}
        for component in self.components:
            if component.kind == kind:
                components.setdefault(component.name, component)
        return components

    def get(self, kind: str, name: str) -> Component:
        """The one component of this name.

        Raises:
            PluginError: No plugin has it (the message suggests a name), or several have.
        """
        components = [c for c in self.components if (c.kind, c.name) == (kind, name)]
        if len(components) == 1:
            return components[0]
        if components:
            plugins = [c.plugin for c in components]
            raise PluginError(f"{kind} '{name}' is offered by {' and '.join(plugins)}. {how_to_block(plugins)}")
        names = sorted(self.of_kind(kind))
        other = next((c.kind for c in self.components if c.name == name), None)
        hint = f" There is {'an' if other == 'energy' else 'a'} {other} of that name." if other else ""
        raise PluginError(
            f"no {kind} named '{name}'.{suggest(name, names) or hint} Known: {_listed(names)}.{self.not_loaded()}"
        )


def how_to_block(plugins: Sequence[str]) -> str:
    """The sentence on choosing one of several plugins that offer the same name."""
    return f"Block the one you do not want: {' or '.join(f'{BLOCK}={plugin}' for plugin in plugins)} guidedcd ..."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


@contextmanager
def blame(whose: str) -> Iterator[None]:
    """Add a note that names the code `whose` to an exception, which keeps its type and traceback.

    A call that takes minutes is named on standard error.

    Raises:
        PluginError: The code called `sys.exit`.
    """
    try:
        with running(whose):
            yield
    except PluginError:
        raise
    except GuidedCDError as error:
        if whose not in str(error) and not getattr(error, "__notes__", ()):
            error.add_note(f"in {whose}")
        raise
    except SystemExit as error:
        raise PluginError(f"{whose} ended the program: {described(error)}.") from error
    except (Exception, KeyboardInterrupt) as error:
        error.add_note(f"in {whose}")
        raise


def load_plugins(blocked: Iterable[str] = ()) -> Registry:
    """Load the components of all installed plugins and plugin files; a plugin that fails is recorded and skipped.

    Args:
        blocked: Ids ("distribution/entry-point") or distributions to leave out, in addition to GUIDEDCD_BLOCK.
    """
    chosen = blocked_by_user()
    blocked = {_normal(text) for text in (*blocked, *chosen)}
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    registry = Registry()
    names: set[str] = set()
    sources: list[tuple[str, str, Callable[[], Any]]] = [
        (id_, version, partial(_load, entry)) for id_, version, entry in entry_points(registry.failures)
    ]
    sources += [
        (one_file.plugin_id(path), one_file.file_hash(path), partial(one_file.load, path))
        for path in one_file.plugin_files()
    ]
    for id_, version, load in sources:
        names |= _names(id_)
        if blocked & _names(id_):
            continue
        imported = Import()
        try:
            with nullcontext(imported) if is_known(id_, version) else isolated(id_, BLOCK) as imported:
                components = _components_of(manager, id_, version, load)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if manager.has_plugin(id_):  # pluggy keeps a plugin whose registration failed
                manager.unregister(name=id_)
            if text := " ".join(imported.output.split()):
                error.add_note(f"{OUTPUT}{text[-200:]}")
            registry.failures.append(Failure(id_, version, error))
            continue
        registry.components += components
        complaints = imported.complaints()
        if not complaints:
            remember(id_, version, manager.get_plugin(id_))
        texts = [*complaints, *(text for one in components for text in config_faults(one.config))]
        registry.notes += [Note(id_, text) for text in dict.fromkeys(texts)]
    unknown = [text for text in chosen if _normal(text) not in names]
    registry.notes += [Note(BLOCK, f"it names {text!r}, which is no installed plugin") for text in unknown]
    return registry


def blocked_by_user() -> list[str]:
    """The entries of GUIDEDCD_BLOCK, as they are written there."""
    return [text.strip() for text in os.environ.get(BLOCK, "").split(",") if text.strip()]


def is_blocked(plugin: str) -> bool:
    """Whether GUIDEDCD_BLOCK leaves out the plugin of this id."""
    return bool({_normal(text) for text in blocked_by_user()} & _names(plugin))


def _names(plugin: str) -> set[str]:
    """The id of a plugin, and its distribution."""
    return {_normal(plugin), plugin.partition("/")[0]}


def entry_points(failures: list[Failure] | None = None) -> list[tuple[str, str, metadata.EntryPoint]]:
    """Each entry point of the group `guidedcd` once, as (id, version, entry point), sorted by id.

    Args:
        failures: A list to which distributions with unreadable metadata are added.
    """
    distributions: dict[str, tuple[str, list[metadata.EntryPoint]]] = {}
    for dist in metadata.distributions():
        try:
            entries = [entry for entry in dist.entry_points if entry.group == GROUP]
            if entries:
                # Of two versions, Python imports the first on sys.path.
                distributions.setdefault(_normal(dist.metadata["Name"]), (dist.version, entries))
        except Exception as error:
            if failures is not None:
                failures.append(Failure(str(getattr(dist, "_path", dist)), "?", error))
    return sorted(
        (
            (f"{name}/{entry.name}", version, entry)
            for name, (version, entries) in distributions.items()
            for entry in entries
        ),
        key=lambda item: item[0],
    )


def _normal(name: str) -> str:
    """A distribution's name in normal form (PEP 503); text after a "/" does not change."""
    distribution, slash, entry = name.partition("/")
    return re.sub(r"[-_.]+", "-", distribution).lower() + slash + entry


def _load(entry: metadata.EntryPoint) -> Any:
    if not entry.pattern.match(entry.value):
        raise PluginError(f"malformed entry point: {entry.name} = {entry.value!r}")
    return entry.load()


def _components_of(manager: pluggy.PluginManager, id_: str, version: str, load: Callable[[], Any]) -> list[Component]:
    """The components that one plugin registers."""
    plugin = load()
    check_hooks(plugin, HOOKS.values(), GROUP)
    manager.register(plugin, name=id_)
    manager.check_pending()  # raises on a hook that this guidedcd does not have
    others = [p for p in manager.get_plugins() if p is not plugin]
    components: list[Component] = []
    for kind, hook in HOOKS.items():
        manager.subset_hook_caller(hook, others)(register=_registrar(components, kind, id_, version))
    return components


def _registrar(components: list[Component], kind: str, plugin: str, version: str) -> Callable[..., None]:
    def register(name: str, target: str, *, config: type, summary: str = "") -> None:
        what = f"{kind} '{name}'"
        if not (isinstance(name, str) and isinstance(target, str)):
            raise PluginError(f"target of {what} must be a text such as 'package.module:Class', not {target!r}")
        if not _NAME.fullmatch(name):
            raise PluginError(f"{kind} name {name!r} must be lower-case words joined by '-'")
        if not _TARGET.fullmatch(target):
            raise PluginError(f"target of {what} must be 'module:attribute', not {target!r}")
        if not (isinstance(config, type) and issubclass(config, CONFIGS[kind])):
            raise PluginError(f"config of {what} must be a subclass of guidedcd.{CONFIGS[kind].__name__}: {config!r}")
        if not isinstance(summary, str):
            raise PluginError(f"summary of {what} must be a text: {summary!r}")
        try:
            str(config())  # help shows the defaults
        except TypeError as error:
            raise PluginError(f"config of {what} must have a default for every field: {error}") from error
        if any((c.kind, c.name) == (kind, name) for c in components):
            raise PluginError(f"{what} is registered twice")
        components.append(Component(kind, name, target, config, plugin, version, summary))

    return register
