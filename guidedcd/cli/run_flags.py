"""A flag for every option of a run and of every plugin's components, made from the config classes."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import attrs
from cyclopts import Group, Parameter, Token

from guidedcd.cli import command_line, help_pages
from guidedcd.config.kinds import ALL_KINDS, DEFAULT_PROFILE, KINDS, SECTIONS, Chosen
from guidedcd.config.merge import components_of
from guidedcd.config.option_types import flag, groups_of, limits, types_of
from guidedcd.config.resolve import resolve
from guidedcd.config.run import Run
from guidedcd.config.selection import Selection, select
from guidedcd.config.sources import ALIASES, Layer, name_of, profiles, read_config, read_profile, split_names
from guidedcd.config.structure import Options, Value, convert, options_of
from guidedcd.docstrings import docs_of
from guidedcd.plugins.registry import Registry

SELECTORS = {
    "teacher": "The pretrained model as NAME[:VALUE].",
    "data": "A dataset as NAME[:VALUE]; repeat the flag to mix several.",
    "energies": "Energies that guide the teacher, NAME[:VALUE][,NAME]; `none` for none.",
    "rewards": "Rewards that train the student, NAME[:VALUE][,NAME]; `none` for none.",
    "routes": "Rules that choose each sample's rewards and caption, NAME[:VALUE][,NAME]; `none` for none.",
    "metrics": "Metrics of the evaluation, NAME[,NAME]; `none` for none.",
    "suite": "The benchmark, NAME.",
}


class _Unset:
    """The flag was not given (None would be a value)."""

    def __repr__(self) -> str:
        return "unset"


UNSET = _Unset()


def as_written(type_: Any, tokens: Sequence[Token]) -> str:
    """Keep a flag's text: it is converted together with the files' values, with the same errors."""
    return ",".join(token.value for token in tokens)


def _field(annotation: Any, default: Any = UNSET) -> Any:
    """A field of a class of flags, whose annotation Cyclopts reads."""
    return attrs.field(default=default, type=annotation)


def _flag(hint: Any, text: str, default: Any, group: Group) -> Any:
    """One flag: the type as help shows it, and the default that holds when it is not given."""
    options: dict[str, Any] = {"help": text, "show_default": _shown(default), "group": group}
    if hint is bool:
        return _field(Annotated[bool, Parameter(**options)])
    if any(typing.get_origin(one) is dict for one in typing.get_args(hint)):  # NAME=NUMBER may be repeated
        repeated = Parameter(converter=as_written, negative="", **options)
        return _field(Annotated[list[str], repeated])
    shape = _shape(hint)
    return _field(Annotated[shape, Parameter(converter=as_written, n_tokens=1, **options)])


def _shown(default: Any) -> Callable[[Any], str] | bool:
    """How help shows a default; False shows none."""
    return False if default in (None, (), [], "") else lambda _: _spelled(default)


def _shape(hint: Any) -> type:
    """The type that help shows: FLOAT, INT, PATH or STR (lists are one text, separated by commas)."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hints = [one for one in typing.get_args(hint) if one is not type(None)]
        hint = hints[0] if len(hints) == 1 else str
    return hint if hint in (float, int, Path) else str


def _spelled(value: Any) -> str:
    """A default as one would type it."""
    if isinstance(value, tuple | list):
        return ",".join(map(_spelled, value))
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _options(cls: type, name: str, defaults: Mapping[str, Value | Options], group: Group) -> type:
    """A class with one flag for every field of the config class `cls`; a group of options is a class in it."""
    hints, docs, groups = types_of(cls), docs_of(cls), groups_of(cls)
    fields: dict[str, Any] = {}
    for number, f in enumerate((f for f in attrs.fields(cls) if f.init and not f.metadata.get("recorded")), 1):
        if f.name in groups:
            of_group = defaults.get(f.name, {})
            title = Group(f"{group.name}: {flag(f.name)}", sort_key=group.sort_key + number)
            nested = _options(groups[f.name], f.name, of_group if isinstance(of_group, dict) else {}, title)
            fields[f.name] = _field(nested)
        else:
            text = _text(docs.get(f.name, ""), limits(f))
            fields[f.name] = _flag(hints[f.name], text, _default(f, defaults), group)
    return attrs.make_class(name, fields, frozen=True, kw_only=True)


def _text(doc: str, accepts: str) -> str:
    return f"{doc} ({accepts})" if accepts else doc


def _default(field: attrs.Attribute, defaults: Mapping[str, Value | Options]) -> Any:
    if isinstance(value := defaults.get(field.name), Value):
        return value.value
    factory = getattr(field.default, "factory", None)
    return field.default if factory is None else factory()


def flags_of(cls: type, title: str, *, defaults: bool = True) -> Any:
    """The annotation of a command's parameter that takes a flag for every field of the config class `cls`.

    Args:
        cls: An attrs class with a default for every field.
        title: The heading of these flags in the help.
        defaults: Whether help shows the defaults of the class.
    """
    unset = {} if defaults else {field.name: Value(None, "") for field in attrs.fields(cls)}
    return Annotated[_options(cls, cls.__name__, unset, Group(title, sort_key=1)), Parameter(name="*", negative="")]


def read_flags(cls: type, flags: Any, what: str) -> dict[str, Any]:
    """The options that the flags of `flags_of` set, by field name, checked and with their types.

    Raises:
        GuidedCDError: A value of the wrong type or out of range; names the flag.
    """
    return options_of(cls, _written(flags) if flags is not None else {}, what, mark="--")


def run_flags(
    registry: Registry,
    profile: str,
    *,
    kinds: Sequence[str] = tuple(KINDS),
    scalars: Sequence[str] = ("profile", "config", "seed", "device", "name"),
    sections: Sequence[str] = tuple(SECTIONS),
    inner: Sequence[str] = (),
) -> type:
    """The class that holds every flag describing a run; help shows the defaults of `profile`, see `help_pages`.

    Args:
        registry: The installed plugins.
        profile: Whose defaults help shows.
        kinds: The kinds of components, as in flags, for a command that takes only some.
        scalars: The options of the run itself.
        sections: The engine's own sections of options.
        inner: Kinds of components that the command does not choose, but that others may be made of: `reward:clip`.
    """
    layer = read_profile(profile)
    fields: dict[str, Any] = {}
    main = Group("Run", sort_key=0)
    for name, text in {
        "profile": f"Source of the defaults: {', '.join(sorted(profiles()))}. Help shows those of this one.",
        "config": "A TOML file or the run.json of another run, with keys named as the flags; flags take precedence.",
        "seed": "Seed of all random numbers.",
        "device": "Device of the networks: auto, cpu, cuda, cuda:N or mps.",
        "name": "Part of the name of the run's folder; by default the profile's name.",
    }.items():
        if name not in scalars:
            continue
        default = {"profile": profile, "seed": 0, "device": "auto"}.get(name)
        hint = {"seed": int, "config": Path}.get(name, str)
        fields[name] = _flag(hint, text, default, main)
    for key in kinds:
        text = SELECTORS[key]
        names = [name if value is None else f"{name}:{value}" for name, value, _ in layer.select.get(key, [])]
        installed = ", ".join(sorted(registry.of_kind(ALL_KINDS[key]))) or "none"
        help_ = f"{text} Installed: {installed}."
        select = Parameter(name=f"--{key}", help=help_, show_default=_shown(",".join(names)), negative="", group=main)
        fields[key] = _field(Annotated[list[str] | None, select], None)
    words = same_words(command_line.words())
    for order, (key, kind) in enumerate(ALL_KINDS.items(), 1):
        if key not in (*kinds, *inner):
            continue
        components = {}
        named = help_pages.shown(words, key, layer) if key in kinds else help_pages.inside(words)
        for component in registry.of_kind(kind).values():
            if not attrs.fields(component.config):
                continue
            defaults: Options = {}
            for name, options in layer.options.get(key, []):
                defaults |= options if name == component.name else {}
            group = Group(f"{kind.capitalize()} {component.name}", sort_key=100 * (10 + order))
            cls = _options(component.config, component.name.replace("-", "_"), defaults, group)
            visible = Parameter(show=named is None or component.name in named)
            components[component.name.replace("-", "_")] = _field(Annotated[cls, visible])
            for value in _values_in(words, key, component.name):
                hidden = Parameter(name=name_of(component.name, value), show=False)
                components[_encoded(component.name, value)] = _field(Annotated[cls, hidden])
        if components:
            cls = attrs.make_class(key, components, frozen=True, kw_only=True)
            fields[f"{key}_options"] = _field(Annotated[cls, Parameter(name=f"--{key}")])
    for order, (key, cls) in enumerate(SECTIONS.items()):
        if key not in sections:
            continue
        group = Group(key.capitalize(), sort_key=100 * (1 + order))
        section = _options(cls, key, layer.sections.get(key, {}), group)
        fields[key] = _field(Annotated[section, Parameter(name=f"--{key}")])
    return attrs.make_class("RunFlags", fields, frozen=True, kw_only=True)


def _values_in(words: Sequence[str], key: str, name: str) -> list[str]:
    """The values in flags of one kind and component such as --rewards.NAME:VALUE.weight, which may contain dots."""
    path = f"--{key}.{name}:"
    flags = [word.partition("=")[0] for word in words]
    values = [flag.removeprefix(path).rpartition(".")[0] for flag in flags if flag.startswith(path)]
    return list(dict.fromkeys(value for value in values if value))


def _encoded(name: str, value: str) -> str:
    """NAME:VALUE as the name of an attribute."""
    return f"{name.replace('-', '_')}__{value.encode().hex()}"


def _decoded(attribute: str) -> str:
    """NAME or NAME:VALUE of a component, from the name of its attribute."""
    name, with_value, value = attribute.partition("__")
    return name_of(name.replace("_", "-"), bytes.fromhex(value).decode() if with_value else None)


def read_run(flags: Any, registry: Registry, *, needs_data: bool = True) -> Run:
    """The run that profile, config file and flags describe together.

    Raises:
        GuidedCDError: A name, option or value that does not exist; no dataset, if `needs_data`.
    """
    written = _written(flags) if flags is not None else {}
    layers = []
    if "config" in written:
        layers.append(read_config(convert(written["config"], Path, "--config")))
    profile = Value(written["profile"], "--profile") if "profile" in written else None
    for layer in layers:
        profile = profile or layer.scalars.get("profile")
    layers.insert(0, read_profile(convert(profile.value, str, profile.where) if profile else DEFAULT_PROFILE))
    return resolve([*layers, _layer(written)], registry, needs_data=needs_data)


def read_selection(flags: Any, registry: Registry, *more: Layer) -> Selection:
    """The components that flags choose, outside of a run.

    Args:
        flags: Of `run_flags`, with fewer kinds.
        registry: The installed plugins.
        *more: Choices above those of the flags.

    Raises:
        GuidedCDError: A name, option or value that does not exist, or no teacher.
    """
    written = _written(flags) if flags is not None else {}
    return select([_layer(written), *more], registry, written.get("profile"))


def read_components(key: str, flags: Any, registry: Registry, *below: Layer) -> list[Chosen]:
    """The components of one kind that flags of `run_flags` choose; their options lie above those of `below`.

    Raises:
        GuidedCDError: A name, option or value that does not exist.
    """
    return components_of(key, [*below, _layer(_written(flags))], registry) if flags is not None else []


def selected(flags: Any) -> list[str]:
    """The kinds of components of which flags of `run_flags` name one."""
    written = _written(flags) if flags is not None else {}
    return list(dict.fromkeys(key.removesuffix("_options") for key in written))


def _layer(written: Mapping[str, Any]) -> Layer:
    """The layer of the flags."""
    options: dict[str, list[tuple[str, dict[str, Value]]]] = {}
    for key in ALL_KINDS:
        for component, options_written in written.get(f"{key}_options", {}).items():
            name = _decoded(component)
            values = {n: Value(v, f"--{key}.{name}.{flag(n)}") for n, v in options_written.items()}
            options.setdefault(key, []).append((name, values))
    return Layer(
        scalars={n: Value(written[n], f"--{n}") for n in ("profile", "name", "seed", "device") if n in written},
        sections={key: _values(written[key], f"--{key}") for key in SECTIONS if key in written},
        options=options,
        select={key: split_names(written[key], f"--{key}") for key in ALL_KINDS if written.get(key) is not None},
    )


def _values(written: Mapping[str, Any], path: str) -> Options:
    """Options that flags below `path` set, each with its flag."""
    return {
        name: _values(value, f"{path}.{flag(name)}")
        if isinstance(value, dict)
        else Value(value, f"{path}.{flag(name)}")
        for name, value in written.items()
    }


def _written(flags: Any) -> dict[str, Any]:
    """The flags that the user wrote, nested as the class of flags."""
    written = {}
    for field in attrs.fields(type(flags)):
        value = getattr(flags, field.name)
        if value is not UNSET and value is not None:
            written[field.name] = _written(value) if attrs.has(type(value)) else value
    return written


def same_words(tokens: Sequence[str]) -> list[str]:
    """Singular and plural are the same: `--reward hps` is `--rewards hps`."""
    words = []
    for token in tokens:
        head, dot, rest = token.partition(".") if "." in token.split("=")[0] else token.partition("=")
        word = head.removeprefix("--")
        words.append(f"--{ALIASES[word]}{dot}{rest}" if head.startswith("--") and word in ALIASES else token)
    return words
