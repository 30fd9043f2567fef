"""Runs from layers, from their own description, and from a file. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guidedcd.config import recorded
from guidedcd.config.merge import fields_of
from guidedcd.config.run import Run
from guidedcd.config.sources import Layer
from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError
from guidedcd.plugins import one_file
from guidedcd.plugins.registry import Registry, load_plugins


def resolve(layers: Sequence[Layer], registry: Registry, *, needs_data: bool = True) -> Run:
    """One run from `layers`, later ones winning.

    Args:
        layers: Profile, file and flags, in this order.
        registry: The installed plugins.
        needs_data: Whether a run without a dataset is an error; a plan needs none.

    Raises:
        GuidedCDError: A name, option or value that does not exist, or no teacher or dataset.
    """
    return Run(**fields_of(layers, registry, needs_data=needs_data))


def run_from_dict(described: Mapping[str, Any], registry: Registry | None = None, *, for_sampling: bool = False) -> Run:
    """The run that `Run.to_dict` described.

    Args:
        described: The content of a run.json.
        registry: The installed plugins.
        for_sampling: Whether components other than the teacher need not be installed. They then have the recorded
            options, and cannot be built.

    Raises:
        GuidedCDError: A component is not installed, or an option is unknown or out of range.
    """
    registry, layer = registry or load_plugins(), Layer.of_file(described, "run.json")
    return resolve([layer], recorded.completed(registry, layer) if for_sampling else registry)


def read_run(path: Path, *, for_sampling: bool = False) -> Run:
    """The run that a run.json describes; see `run_from_dict`.

    Raises:
        GuidedCDError: It is missing or damaged, names a component that is not installed, or an option that is unknown
            or out of range.
    """
    described = read_json(path, {"teacher": {}, "data": [{}]})
    try:
        return run_from_dict(described, for_sampling=for_sampling)
    except GuidedCDError as error:
        # Of several runs it must be clear whose options these are.
        text = str(error).replace(" in run.json", f" in {path}")
        used = set(described.get("plugin_files") or ()) - set(one_file.hashes())
        hint = "".join(f" The run used the plugin file {name}: set {one_file.FILES}={name}." for name in sorted(used))
        raise type(error)(text + hint) from error
