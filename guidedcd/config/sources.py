"""The options of a run that one source sets: a profile, a config file, or the flags. No torch."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import attrs

from guidedcd.config.kinds import KINDS, SCALARS, SECTIONS
from guidedcd.config.old_names import check_key
from guidedcd.config.option_types import groups_of
from guidedcd.config.structure import Options, Value
from guidedcd.documents import read_json, read_toml
from guidedcd.errors import GuidedCDError, refusal, suggest

ALIASES = {"energy": "energies", "reward": "rewards", "route": "routes", "metric": "metrics", "dataset": "data"}
"""Singular and plural of the same word; both are accepted everywhere."""

Names = list[tuple[str, str | None, str]]
"""Selected components: (name, VALUE or None, where it was written)."""


REFERENCE = "reference"
"""Key of a profile that names the file with the curves of a good run, in the folder of profiles."""


@attrs.frozen
class Layer:
    """The options that one source sets: a profile, a file or the flags."""

    scalars: dict[str, Value] = attrs.field(factory=dict)
    sections: dict[str, Options] = attrs.field(factory=dict)
    """By section, by option."""
    options: dict[str, list[tuple[str, dict[str, Value]]]] = attrs.field(factory=dict)
    """By kind's key, (component's name, its options); only `data` may repeat a name."""
    select: dict[str, Names] = attrs.field(factory=dict)
    """By kind's key, what is selected; a missing key leaves the selection of the layers below."""
    optional: bool = False
    """Whether options of unknown or unselected components are passed over (profiles)."""

    @classmethod
    def of_file(cls, content: Mapping[str, Any], source: str, *, profile: bool = False, python: bool = False) -> Layer:
        """The layer of a TOML or run.json file; in a profile, options do not select.

        Args:
            content: The file's content.
            source: What to call the file in messages.
            profile: Whether it is a profile.
            python: Whether a Python program described the run, in which components are selected by their own keys.

        Raises:
            GuidedCDError: A key that does not exist, with a suggestion.
        """
        scalars: dict[str, Value] = {}
        sections: dict[str, Options] = {}
        options: dict[str, list[tuple[str, dict[str, Value]]]] = {}
        select: dict[str, Names] = {}
        for written, value in content.items():
            key, where = ALIASES.get(written, written), f"{written} in {source}"
            if key in SCALARS:
                scalars[key] = Value(value, where)
            elif key in SECTIONS:
                sections[key] = _options(SECTIONS[key], _table(value, where), written, source)
            elif key in KINDS:
                components, selects = _components(value, written, source)
                options[key] = components
                if selects is not None:
                    select[key] = selects
                elif not profile:
                    names = (_name(name, f"{written}.{name} in {source}") for name, _ in components)
                    select.setdefault(key, [one for selected in names for one in selected])
            elif key == "select" and not python:
                for kind, names in _table(value, where).items():
                    if ALIASES.get(kind, kind) not in KINDS:
                        raise GuidedCDError(f"{source}: no kind '{kind}' to select.{suggest(kind, KINDS)}")
                    if not isinstance(names, str | list):
                        raise GuidedCDError(refusal(f"select.{kind} in {source}", names, "a list of names"))
                    select[ALIASES.get(kind, kind)] = _names(names, f"select.{kind} in {source}")
            elif key not in ("guidedcd", "command", "summary", "plugin_files") and not (profile and key == REFERENCE):
                keys = [*SCALARS, *SECTIONS, *KINDS, *([] if python else ["select"])]
                raise GuidedCDError(
                    f"{source}: unknown key '{written}'.{suggest(written, keys)} Known: {', '.join(keys)}."
                )
        return cls(scalars, sections, options, select, optional=profile)


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise GuidedCDError(refusal(where, value, "a table of options"))
    return value


def _options(cls: type, table: Mapping[str, Any], path: str, source: str) -> Options:
    """The options of the config class `cls` that a file sets, groups of options included."""
    options: Options = {}
    for name, value in table.items():
        written, group = f"{path}.{name}", groups_of(cls).get(name.replace("-", "_"))
        check_key(written, value, source)
        where = f"{written} in {source}"
        options[name] = _options(group, _table(value, where), written, source) if group else Value(value, where)
    return options


def _components(value: Any, key: str, source: str) -> tuple[list[tuple[str, dict[str, Value]]], Names | None]:
    """Options by component, and the selection where names stand alone: `energies = "a,b"`, `rewards = ["c"]`."""
    where = f"{key} in {source}"
    if isinstance(value, str) or (isinstance(value, list) and value and all(isinstance(v, str) for v in value)):
        return [], _names(value, where)
    components = []
    for table in value if isinstance(value, list) else [value]:
        for name, options in _table(table, where).items():
            values = _table(options, f"{key}.{name} in {source}")
            components.append((name, {k: Value(v, f"{key}.{name}.{k} in {source}") for k, v in values.items()}))
    return components, None


def _names(value: str | list[str], where: str) -> Names:
    """Names in a file: a list has one in each place, a text is split as a flag's."""
    if isinstance(value, str):
        return split_names([value], where)
    return _names_of([str(text) for text in value], where)


def name_of(name: str, value: str | None) -> str:
    """A component as it is written: NAME, or NAME:VALUE."""
    return name if value is None else f"{name}:{value}"


def split_names(texts: Iterable[str], where: str) -> Names:
    """NAME[:VALUE] lists, split at commas; a comma inside a VALUE stays if no new name can begin after it."""
    parts = [part for text in texts for part in re.split(r",(?=\s*[a-z][a-z0-9-]*\s*(?:[:,]|$))", text)]
    return _names_of(parts, where)


def _names_of(parts: Sequence[str], where: str) -> Names:
    names = [one for part in parts for one in _name(part, where)]
    if names and "none" in map(str.strip, parts):
        raise GuidedCDError(f"{where} has `none` beside {names[0][0]}. Give either `none` or names.")
    return names


def _name(text: str, where: str) -> Names:
    name, colon, value = text.strip().partition(":")
    return [(name, value if colon else None, where)] if name and name != "none" else []


def profiles() -> dict[str, Any]:
    """The shipped profiles: name -> file."""
    folder = resources.files("guidedcd.config") / "profiles"
    return {file.name.removesuffix(".toml"): file for file in folder.iterdir() if file.name.endswith(".toml")}


def reference_of(name: str) -> Any | None:
    """The file with the curves of a good run of a shipped profile, in its folder; None where there is none."""
    profile = profiles().get(name)
    written = tomllib.loads(profile.read_text(encoding="utf-8")).get(REFERENCE) if profile else None
    return written and resources.files("guidedcd.config") / "profiles" / written


def read_profile(name: str) -> Layer:
    """The layer of a shipped profile.

    Raises:
        GuidedCDError: There is none of this name.
    """
    available = profiles()
    if name not in available:
        raise GuidedCDError(
            f"no profile named '{name}'.{suggest(name, available)} Known: {', '.join(sorted(available))}."
        )
    content = tomllib.loads(available[name].read_text(encoding="utf-8"))
    return Layer.of_file(content, f"profile {name}", profile=True)


def read_config(path: Path) -> Layer:
    """The layer of a user's TOML file or run.json (or of a run folder that has one).

    Raises:
        GuidedCDError: It cannot be read, with the line where it is malformed.
    """
    if path.is_dir() and (path / "run.json").is_file():
        path = path / "run.json"
    try:
        content = read_json(path) if path.suffix == ".json" else read_toml(path)
    except GuidedCDError as error:
        raise type(error)(f"--config: {error}") from None
    if not isinstance(content, dict):
        raise GuidedCDError(f"--config: {path} must contain a table of options.")
    return Layer.of_file(content, str(path))


def options_of_run(path: Path) -> list[Layer]:
    """The options of a run's profile and rewards, for components that are chosen when the run is finished.

    Args:
        path: Its run.json; one that cannot be read has no options.
    """
    try:
        content = read_json(path, {"profile?": str, "rewards?": {str: {}}})
    except GuidedCDError:  # an error of the file is reported where the run is read
        return []
    name = content.get("profile")
    below = [Layer(options=read_profile(name).options, optional=True)] if name in profiles() else []
    recorded = [
        (reward, {option: Value(value, f"rewards.{reward} in {path}") for option, value in options.items()})
        for reward, options in content.get("rewards", {}).items()
    ]
    return [*below, Layer(options={"rewards": recorded}, optional=True)]
