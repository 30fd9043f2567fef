"""The blocks of docs/reference/plugins.md: the components that come with guidedcd, and their options."""

from __future__ import annotations

from collections.abc import Iterator

from make_hooks import HEAD, rows
from reference_markdown import table, wrapped

from guidedcd.config.kinds import ALL_KINDS
from guidedcd.plugins.registry import CONFIGS, Component, load_plugins

PLURALS = {"energy": "Energies", **{kind: f"{kind.capitalize()}s" for kind in CONFIGS if kind != "energy"}}


def shipped() -> Iterator[Component]:
    """The components of guidedcd's own plugins, by kind in the order of the hooks and by name."""
    own = [component for component in load_plugins().components if component.plugin.startswith("guidedcd/")]
    yield from sorted(own, key=lambda component: (list(CONFIGS).index(component.kind), component.name))


def overview() -> str:
    """A table of the components of each kind."""
    parts = []
    for kind, title in PLURALS.items():
        lines = [
            (
                f"[`{component.name}`](#{anchor(component)})",
                component.summary,
                f"`{component.target.partition('.')[0]}`",
            )
            for component in shipped()
            if component.kind == kind
        ]
        parts += [f"### {title}", table((kind, "what it does", "package"), lines)]
    return "\n\n".join(parts)


def details() -> str:
    """A section for each component with the options that it has besides those of its kind, or with other defaults."""
    parts = []
    for component in shipped():
        parts.append(f"### {component.kind.capitalize()} `{component.name}`")
        parts.append(wrapped(f"{component.summary[:1].upper()}{component.summary[1:]}."))
        if own := own_options(component):
            parts.append(table(HEAD, own))
    return "\n\n".join(parts)


def own_options(component: Component) -> list[tuple[str, str, str, str]]:
    """The rows of the options that the base class of the kind does not have in the same form."""
    path = f"{next(key for key, kind in ALL_KINDS.items() if kind == component.kind)}.{component.name}"
    base = rows(CONFIGS[component.kind], path)
    return [row for row in rows(component.config, path) if row not in base]


def package(component: Component) -> str:
    """The import package that contains a component."""
    return f"`{component.target.partition(':')[0].partition('.')[0]}`"


def anchor(component: Component) -> str:
    """The anchor of a component's section."""
    return f"{component.kind}-{component.name}"


BLOCKS = {"overview": overview, "details": details}
