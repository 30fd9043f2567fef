"""Groups of options in flags, such as `--student`, which take no value. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import attrs

from guidedcd.config.kinds import ALL_KINDS, SECTIONS
from guidedcd.config.option_types import flag, groups_of
from guidedcd.errors import GuidedCDError
from guidedcd.plugins.registry import Registry


def check_inner(words: Sequence[str], kinds: Sequence[str]) -> None:
    """Refuse a choice of components that a command does not choose, but only has the options of.

    Args:
        words: The command line.
        kinds: These kinds, as in flags.

    Raises:
        GuidedCDError: There is one.
    """
    for word in words:
        key = word.partition("=")[0].removeprefix("--")
        if word.startswith("--") and key in kinds:
            kind = ALL_KINDS[key]
            raise GuidedCDError(
                f"--{key} chooses no {kind} here. An energy or a metric may be made of one, as in {kind}:NAME, whose "
                f"options are --{key}.NAME.OPTION."
            )


def check_groups(words: Sequence[str], registry: Registry, *, sections: bool) -> None:
    """Refuse a group of options that is given a value, such as `--student lora`.

    Args:
        words: The command line.
        registry: The installed plugins.
        sections: Whether the command takes the sections of a run; without them its own flags may have their names.

    Raises:
        GuidedCDError: There is one; names an option of the group.
    """
    groups = dict(_groups(SECTIONS, "--")) if sections else {}
    for key, kind in ALL_KINDS.items():
        groups |= _groups({one.name: one.config for one in registry.of_kind(kind).values()}, f"--{key}.")
    for word in words:
        written = word.partition("=")[0]
        group = groups.get(flag(written))
        if group is not None and attrs.fields(group):
            option = flag(attrs.fields(group)[0].name)
            raise GuidedCDError(f"{written} is a group of options. Give one of them, such as {written}.{option}.")


def _groups(classes: Mapping[str, type], path: str) -> Iterator[tuple[str, type]]:
    """The flags that stand for config classes and for the groups of options in them, each with its class."""
    for name, cls in classes.items():
        yield f"{path}{flag(name)}", cls
        yield from _groups(groups_of(cls), f"{path}{flag(name)}.")
