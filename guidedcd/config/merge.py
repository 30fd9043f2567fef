"""From layers to the fields of one run: class default < profile < file < flags. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import attrs

from guidedcd.config.kinds import ALL_KINDS, DEFAULT_PROFILE, KINDS, SCALARS, SECTIONS, Basic, Chosen
from guidedcd.config.option_types import kind_inside, naming, positional
from guidedcd.config.sources import Layer, Names, name_of
from guidedcd.config.structure import Options, Value, structure, unstructure
from guidedcd.errors import GuidedCDError, option_name, shown
from guidedcd.plugins import objects
from guidedcd.plugins.configs import EnergyConfig
from guidedcd.plugins.registry import Component, Registry, load_plugins


def fields_of(layers: Sequence[Layer], registry: Registry, *, needs_data: bool = True) -> dict[str, Any]:
    """The fields of the run that `resolve` returns, with the same arguments and errors."""
    scalars: dict[str, Value] = {}
    for layer in layers:
        scalars |= layer.scalars
    chosen = {key: components_of(key, layers, registry) for key in KINDS}
    profile = scalars.get("profile", Value(DEFAULT_PROFILE, "")).value
    if len(chosen["teacher"]) != 1:
        names = [one.name for one in chosen["teacher"]]
        selected = f"{' and '.join(names)} are selected" if names else "none is selected"
        raise GuidedCDError(f"a run has one teacher, but {selected}. Use --teacher NAME.")
    if needs_data and not chosen["data"]:
        raise GuidedCDError(f"profile '{profile}' selects no dataset. Use --data NAME[:VALUE].")
    for key, components in chosen.items():
        names = [one.name for one in components]
        if key != "data" and len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise GuidedCDError(f"{KINDS[key]} '{twice}' is named twice.")
    engine = {
        key: structure(cls, _merged(layer.sections.get(key, {}) for layer in layers), f"[{key}]")
        for key, cls in SECTIONS.items()
    }
    scalars.setdefault("name", Value(profile, "profile"))
    basic = structure(Basic, scalars, "the run")
    return {
        "teacher": chosen["teacher"][0],
        "data": tuple(chosen["data"]),
        **{key: {one.name: one.config for one in chosen[key]} for key in ("energies", "rewards", "routes", "metrics")},
        **engine,
        **{name: getattr(basic, name) for name in SCALARS},
    }


def _merged(tables: Iterable[Mapping[str, Value | Options]]) -> Options:
    """The options of several tables together, later ones winning, option by option."""
    merged: Options = {}
    for table in tables:
        for written, value in table.items():
            name = written.replace("-", "_")
            below = merged.get(name)
            if isinstance(value, dict) and isinstance(below, dict):
                value = _merged([below, value])
            merged[name] = value
    return merged


def components_of(key: str, layers: Sequence[Layer], registry: Registry) -> list[Chosen]:
    """The selected components of one kind; the options of a selected one are those of all layers together.

    Options of NAME hold for all components of that name, those of NAME:VALUE only for the one with that value. The name
    of a component in the run is NAME:VALUE where the value names it (see `naming`), or where NAME is selected twice.

    Raises:
        GuidedCDError: A name, option or value that does not exist, or an option of a component that is not selected.
    """
    kind = ALL_KINDS[key]
    selected = _selected(key, layers)
    for layer in layers:
        if not layer.optional:
            for name, _ in layer.options.get(key, []):
                _component(kind, name.partition(":")[0], layers, registry)
    inside = _names_inside(key, layers, registry)
    for layer in layers:
        _check_selected(key, layer, selected, inside)
    components = []
    seen: dict[str, int] = {}
    for name, value, where in selected:
        index = seen[name] = seen.get(name, -1) + 1
        tables = [table for layer in layers for table in _tables(key, name, value, layer, index)]
        component = _component(kind, name, layers, registry)
        chosen = _with_inside(key, _built(component, value, _joined(kind, tables), where), where, layers, registry)
        repeated = key in REPEATABLE and value is not None and sum(n == name for n, _, _ in selected) > 1
        components.append(attrs.evolve(chosen, name=name_of(name, value)) if repeated else chosen)
    return components


def _selected(key: str, layers: Sequence[Layer]) -> Names:
    """What the highest layer that selects components of one kind selects."""
    return next((layer.select[key] for layer in reversed(layers) if key in layer.select), [])


def _tables(key: str, name: str, value: str | None, layer: Layer, index: int = 0) -> Sequence[Mapping[str, Value]]:
    """The options that one layer has for a component, the number `index` of its name; those of NAME:VALUE last."""
    options = layer.options.get(key, [])
    tables = [table for n, table in options if n == name]
    # A file may list a dataset several times, each with its own options; one table serves all of that name.
    tables = tables[index : index + 1] if len(tables) > 1 else tables
    return tables + [table for n, table in options if value is not None and n == name_of(name, value)]


def _joined(kind: str, tables: Sequence[Mapping[str, Value]]) -> Options:
    """The options of a component in all layers together."""
    merged = _merged(tables)
    if kind == "energy" and "scale" in merged and "relative" in merged:
        _drop_older(merged, tables)
    if kind == "energy" and "scale" in merged and "relative" not in merged:
        merged["relative"] = Value(None, "")  # a relative strength of the energy's own config
    return merged


def _names_inside(key: str, layers: Sequence[Layer], registry: Registry) -> set[str]:
    """The components of one kind that selected components of other kinds are made of: NAME and NAME:VALUE."""
    names = set()
    for other, kind in KINDS.items():
        for name, value, _ in _selected(other, layers):
            component = registry.of_kind(kind).get(name)
            if value is not None and component is not None and kind_inside(component.config) == ALL_KINDS[key]:
                names |= {value, value.partition(":")[0]}
    return names


def _with_inside(key: str, chosen: Chosen, where: str, layers: Sequence[Layer], registry: Registry) -> Chosen:
    """A component with the options of the one that it is made of; run.json has all of them under `inside`."""
    kind = kind_inside(type(chosen.config))
    if kind is None:
        return chosen
    outer, _, text = chosen.name.partition(":")
    name, colon, value = text.partition(":")
    of_kind = next(one for one, other in KINDS.items() if other == kind)
    tables: list[Mapping[str, Value]] = []
    for layer in layers:
        tables += _tables(of_kind, name, value if colon else None, layer)
        for table in _tables(key, outer, text, layer):
            if "inside" in table:
                recorded = table["inside"].value
                tables = [{option: Value(one, f"{chosen.name} in run.json") for option, one in recorded.items()}]
    inner = _built(registry.get(kind, name), value if colon else None, _joined(kind, tables), where)
    options: dict[str, Any] = {"inside": unstructure(inner.config)}
    return Chosen(chosen.name, attrs.evolve(chosen.config, **options))


def inside(config: Any, registry: Registry | None = None) -> Chosen | None:
    """The component that a component is made of, with its options; None for a config without `kind` in its metadata.

    Raises:
        GuidedCDError: There is no component of that name, or an option does not exist.
    """
    kind = kind_inside(type(config))
    if kind is None:
        return None
    field = naming(type(config))
    text = str(getattr(config, field.name)) if field is not None else ""
    if not text:
        raise GuidedCDError(f"it needs the name of {'an' if kind == 'energy' else 'a'} {kind}: write NAME:VALUE.")
    options = {option: Value(one, f"option {option} of {text}") for option, one in config.inside.items()}
    return choose(kind, text, options, text, registry or load_plugins())


REPEATABLE = ("energies", "rewards", "routes")
"""Kinds of which a run may have one component with several values; the values of a metric have names of their own."""


def _check_selected(key: str, layer: Layer, selected: Names, inside: Collection[str] = ()) -> None:
    """Refuse options of a component that neither `layer` itself nor the run selects.

    A profile has options for components that a run may select. A file that selects a component may be used by runs
    whose flags select another.

    Raises:
        GuidedCDError: There are such options; it states how the component is selected.
    """
    own = (*selected, *layer.select.get(key, []))
    names = {name for name, _, _ in own} | {name_of(name, value) for name, value, _ in own} | set(inside)
    for name, options in layer.options.get(key, []):
        if layer.optional or name in names:
            continue
        where = next(iter(options.values())).where if options else f"[{key}.{name}]"
        present = [name_of(one, value) for one, value, _ in selected]
        listed = f"selected: {', '.join(present)}" if present else "none is"
        both = ",".join([*present, name]) if key not in ("teacher", "data") else name
        raise GuidedCDError(
            f"{where} is an option of {ALL_KINDS[key]} '{name}', which is not selected ({listed}). Select it with "
            f"--{key} {both}, or leave the option out."
        )


def _component(kind: str, name: str, layers: Sequence[Layer], registry: Registry) -> Component:
    """The installed component, or the Python object that a layer's options describe."""
    for layer in layers:
        for key, tables in layer.options.items():
            if ALL_KINDS[key] == kind and any(n == name and objects.MARK in options for n, options in tables):
                return objects.component(kind, name)
    return registry.get(kind, name)


def choose(kind: str, text: str, options: Mapping[str, Value], where: str, registry: Registry) -> Chosen:
    """The one component that `text`, NAME[:VALUE], names, with `options`.

    Raises:
        GuidedCDError: A name, option or value that does not exist.
    """
    name, colon, value = text.strip().partition(":")
    return _built(registry.get(kind, name), value if colon else None, dict(options), where)


def _built(component: Component, value: str | None, merged: Options, where: str) -> Chosen:
    """A component with its options; `value` is the text after the ":"."""
    kind, name = component.kind, component.name
    if value is not None:
        field = positional(component.config)
        if field is None:
            raise GuidedCDError(f"{where}: {kind} '{name}' takes no value after ':' (got {shown(value)}).")
        if not value.strip():
            raise GuidedCDError(
                f"{where}: nothing follows '{name}:'. Give its {option_name(field.name)}, or leave the ':' out."
            )
        merged[field.name] = Value(value, f"{where} {name}:{value}")
    config = structure(component.config, merged, f"{kind} '{name}'")
    if kind not in ("teacher", "dataset") and (field := naming(component.config)):
        if not (value := str(getattr(config, field.name) or "")):
            raise GuidedCDError(f"{where}: {kind} '{name}' needs its {option_name(field.name)}: write {name}:VALUE.")
        name = name_of(name, value)
    if isinstance(config, EnergyConfig) and config.relative is None and config.scale is None:
        if config.scale_range is not None:
            raise GuidedCDError(
                f"energy '{name}' has a {option_name('scale_range')}, but neither scale nor relative: "
                "state the one whose unit the range has."
            )
        config = attrs.evolve(config, relative=config.strength)  # recorded in run.json, whatever later defaults are
    return Chosen(name, config)


def _drop_older(merged: Options, tables: Sequence[Mapping[str, Value]]) -> None:
    """Of `scale` and `relative`, which exclude each other, the one of the higher layer; a run.json has both.

    Raises:
        GuidedCDError: The user states both in one place.
    """
    newest = [table for table in tables if "scale" in table or "relative" in table][-1]
    stated = [newest[name] for name in ("scale", "relative") if name in newest]
    is_recorded = stated[0].where.endswith(".json")
    if len(stated) == 2 and not is_recorded and not any(one.value in (None, "none") for one in stated):
        raise GuidedCDError(
            f"{stated[0].where} and {stated[1].where} are both stated. Each sets the strength of the energy: scale is "
            "the factor of its gradient, relative the share of the prediction. Leave one of them out."
        )
    if "relative" not in newest:
        del merged["relative"]
