"""Discover and load plugins, isolated from each other. No torch here."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import attrs
import pluggy

from guidedcd.errors import GuidedCDError, PluginError, suggest
from guidedcd.plugins import hookspecs
from guidedcd.plugins.configs import DatasetConfig, EnergyConfig, MetricConfig, RewardConfig, RouteConfig, TeacherConfig

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
}
"""The hook of each kind of component."""

CONFIGS = {
    "energy": EnergyConfig,
    "reward": RewardConfig,
    "route": RouteConfig,
    "teacher": TeacherConfig,
    "dataset": DatasetConfig,
    "metric": MetricConfig,
}
"""The base class of the config of each kind, whose fields the engine reads."""

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
            return getattr(importlib.import_module(module), attribute)
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{self.kind} '{self.name}' of plugin '{self.plugin}' could not be imported from {self.target}: "
                f"{type(error).__name__}: {error}. See `guidedcd plugins doctor -v`."
            ) from error

    def build(self, config: object | None = None) -> object:
        """Import the target and call it with `config`, or with the default options."""
        target = self.load()
        with blame(str(self)):
            return target(self.config() if config is None else config)


@attrs.frozen
class Failure:
    """A plugin that could not be loaded, and why."""

    plugin: str
    version: str
    error: BaseException


@attrs.define
class Registry:
    """The components of all installed plugins, and the plugins that could not be loaded."""

    components: list[Component] = attrs.field(factory=list)
    failures: list[Failure] = attrs.field(factory=list)

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
            raise PluginError(
                f"{kind} '{name}' is offered by {' and '.join(c.plugin for c in components)}. "
                f"Block the one you do not want: {BLOCK}={components[0].plugin} guidedcd ..."
            )
        names = sorted(self.of_kind(kind))
        other = next((c.kind for c in self.components if c.name == name), None)
        hint = f" There is {'an' if other == 'energy' else 'a'} {other} of that name." if other else ""
        broken = ", ".join(f.plugin for f in self.failures)
        note = f" Not loaded: {broken}. See `guidedcd plugins doctor`." if broken else ""
        raise PluginError(f"no {kind} named '{name}'.{suggest(name, names) or hint} Known: {_listed(names)}.{note}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


@contextmanager
def blame(whose: str) -> Iterator[None]:
    """Add a note that names the code `whose` to an exception, which keeps its type and traceback."""
    try:
        yield
    except GuidedCDError:
        raise
    except Exception as error:
        error.add_note(f"in {whose}")
        raise


def load_plugins(blocked: Iterable[str] = ()) -> Registry:
    """Load the components of all installed plugins; a plugin that fails is recorded and skipped.

    Args:
        blocked: Ids ("distribution/entry-point") or distributions to leave out, in addition to GUIDEDCD_BLOCK.
    """
    blocked = {_normal(b.strip()) for b in (*blocked, *os.environ.get(BLOCK, "").split(","))}
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    registry = Registry()
    for id_, version, entry in entry_points(registry.failures):
        if blocked & {_normal(id_), id_.partition("/")[0]}:
            continue
        try:
            registry.components += _components_of(manager, id_, version, entry)
        except (Exception, SystemExit) as error:
            if manager.has_plugin(id_):  # pluggy keeps a plugin whose registration failed
                manager.unregister(name=id_)
            registry.failures.append(Failure(id_, version, error))
    return registry


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


def _components_of(
    manager: pluggy.PluginManager, id_: str, version: str, entry: metadata.EntryPoint
) -> list[Component]:
    """The components that one plugin registers."""
    if not entry.pattern.match(entry.value):
        raise PluginError(f"malformed entry point: {entry.name} = {entry.value!r}")
    plugin = entry.load()
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
        if not _NAME.fullmatch(name):
            raise PluginError(f"{kind} name {name!r} must be lower-case words joined by '-'")
        if not _TARGET.fullmatch(target):
            raise PluginError(f"target of {what} must be 'module:attribute', not {target!r}")
        if not (isinstance(config, type) and issubclass(config, CONFIGS[kind])):
            raise PluginError(f"config of {what} must be a subclass of guidedcd.{CONFIGS[kind].__name__}: {config!r}")
        try:
            config()
        except TypeError as error:
            raise PluginError(f"config of {what} must have a default for every field: {error}") from error
        if any((c.kind, c.name) == (kind, name) for c in components):
            raise PluginError(f"{what} is registered twice")
        components.append(Component(kind, name, target, config, plugin, version, summary))

    return register
