"""Find plugins, and keep a broken one from breaking anything else. No torch here."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata

import attrs
import pluggy

from guidedcd.errors import GuidedCDError, PluginError, suggest
from guidedcd.plugins import hookspecs
from guidedcd.plugins.configs import DatasetConfig, EnergyConfig, MetricConfig, RewardConfig, RouteConfig, TeacherConfig

GROUP = "guidedcd"


BLOCK = "GUIDEDCD_BLOCK"


HOOKS = {
    "energy": "register_energies",
    "reward": "register_rewards",
    "route": "register_routes",
    "teacher": "register_teachers",
    "dataset": "register_datasets",
    "metric": "register_metrics",
}
"""Every kind of component, and the hook that offers it."""


CONFIGS = {
    "energy": EnergyConfig,
    "reward": RewardConfig,
    "route": RouteConfig,
    "teacher": TeacherConfig,
    "dataset": DatasetConfig,
    "metric": MetricConfig,
}
"""What the config of each kind must derive from: the engine reads these fields."""


_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@attrs.frozen
class Component:
    """One named thing a plugin offers. Nothing heavy is imported until `load`."""

    kind: str
    name: str
    target: str
    """Where it is, "module:attribute"."""
    config: type
    plugin: str
    """Id of the plugin that offers it, "distribution/entry-point"."""
    version: str = ""
    """Version of that distribution."""
    summary: str = ""

    def __str__(self) -> str:
        return f"{self.kind} '{self.name}' of {self.plugin}"

    def load(self) -> Callable:
        """Import the target."""
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{self.kind} '{self.name}' of plugin '{self.plugin}' could not be imported from {self.target}: "
                f"{type(error).__name__}: {error}. See `guidedcd plugins doctor -v`."
            ) from error

    def build(self, config: object | None = None) -> object:
        """Import the target and call it with `config` (default: every option at its default)."""
        target = self.load()
        with blame(str(self)):
            return target(self.config() if config is None else config)


@attrs.frozen
class Failure:
    """Why a plugin is not in use."""

    plugin: str
    version: str
    error: BaseException


@attrs.define
class Registry:
    """What the installed plugins offer, and which of them could not be asked."""

    components: list[Component] = attrs.field(factory=list)
    failures: list[Failure] = attrs.field(factory=list)

    def of_kind(self, kind: str) -> dict[str, Component]:
        """The components of one kind by name; of a contested name, the first."""
        found: dict[str, Component] = {}
        for component in self.components:
            if component.kind == kind:
                found.setdefault(component.name, component)
        return found

    def get(self, kind: str, name: str) -> Component:
        """The one component of this name.

        Raises:
            PluginError: No plugin offers it (with a suggestion), or several do.
        """
        found = [c for c in self.components if (c.kind, c.name) == (kind, name)]
        if len(found) == 1:
            return found[0]
        if found:
            raise PluginError(
                f"{kind} '{name}' is offered by {' and '.join(c.plugin for c in found)}. "
                f"Block the one you do not want: {BLOCK}={found[0].plugin} guidedcd ..."
            )
        known = sorted(self.of_kind(kind))
        other = next((c.kind for c in self.components if c.name == name), None)
        hint = f" There is {'an' if other == 'energy' else 'a'} {other} of that name." if other else ""
        broken = ", ".join(f.plugin for f in self.failures)
        note = f" Not loaded: {broken}. See `guidedcd plugins doctor`." if broken else ""
        raise PluginError(f"no {kind} named '{name}'.{suggest(name, known) or hint} Known: {_listed(known)}.{note}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


@contextmanager
def blame(whose: str) -> Iterator[None]:
    """Add whose code it was to an exception that passes, which keeps its type and traceback."""
    try:
        yield
    except GuidedCDError:
        raise
    except Exception as error:
        error.add_note(f"in {whose}")
        raise


def load_plugins(blocked: Iterable[str] = ()) -> Registry:
    """Ask every installed plugin what it offers; one that fails offers nothing and costs the others nothing.

    Args:
        blocked: Ids ("distribution/entry-point") or distributions to leave out, besides those in GUIDEDCD_BLOCK.
    """
    blocked = {_normal(b.strip()) for b in (*blocked, *os.environ.get(BLOCK, "").split(","))}
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    registry = Registry()
    for id_, version, entry in entry_points(registry.failures):
        if blocked & {_normal(id_), id_.partition("/")[0]}:
            continue
        try:
            registry.components += _ask(manager, id_, version, entry)
        except (Exception, SystemExit) as error:
            if manager.has_plugin(id_):  # `register` leaves what it refuses behind
                manager.unregister(name=id_)
            registry.failures.append(Failure(id_, version, error))
    return registry


def entry_points(failures: list[Failure] | None = None) -> list[tuple[str, str, metadata.EntryPoint]]:
    """Each `guidedcd` entry point once: (id, version, entry point), in the order of the ids.

    Args:
        failures: Where to report a distribution whose metadata cannot be read.
    """
    found: dict[str, tuple[str, list[metadata.EntryPoint]]] = {}
    for dist in metadata.distributions():
        try:
            ours = [entry for entry in dist.entry_points if entry.group == GROUP]
            if ours:
                found.setdefault(_normal(dist.metadata["Name"]), (dist.version, ours))  # first on sys.path wins
        except Exception as error:
            if failures is not None:
                failures.append(Failure(str(getattr(dist, "_path", dist)), "?", error))
    every = [(f"{name}/{e.name}", version, e) for name, (version, entries) in found.items() for e in entries]
    return sorted(every, key=lambda one: one[0])


def _normal(name: str) -> str:
    """A distribution's name as PyPI writes it; the part after a "/" is left alone."""
    distribution, slash, entry = name.partition("/")
    return re.sub(r"[-_.]+", "-", distribution).lower() + slash + entry


def _ask(manager: pluggy.PluginManager, id_: str, version: str, entry: metadata.EntryPoint) -> list[Component]:
    """Everything that one plugin offers, or an exception and nothing."""
    if not entry.pattern.match(entry.value):
        raise PluginError(f"malformed entry point: {entry.name} = {entry.value!r}")
    plugin = entry.load()
    manager.register(plugin, name=id_)
    manager.check_pending()  # raises on a hook that this guidedcd does not have
    others = [p for p in manager.get_plugins() if p is not plugin]
    offered: list[Component] = []
    for kind, hook in HOOKS.items():
        manager.subset_hook_caller(hook, others)(register=_registrar(offered, kind, id_, version))
    return offered


def _registrar(offered: list[Component], kind: str, plugin: str, version: str) -> Callable[..., None]:
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
        if any((c.kind, c.name) == (kind, name) for c in offered):
            raise PluginError(f"{what} is registered twice")
        offered.append(Component(kind, name, target, config, plugin, version, summary))

    return register
