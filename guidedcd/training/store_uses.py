"""The runs that use a latent store. No torch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from guidedcd.config.resolve import read_run
from guidedcd.config.run import Run
from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError
from guidedcd.files import digest, write_json
from guidedcd.locks import holder
from guidedcd.preprocessing.identity import may_use
from guidedcd.training.run_folder import RUNS, SOURCES, finished

NOTES = "runs"
"""Folder in a store with a file for each run that was trained on it."""


@attrs.frozen(kw_only=True)
class StoreUse:
    """A run that uses a store."""

    folder: Path
    run: Run
    is_finished: bool
    """Whether it has all its results and no process writes it."""
    sources: Mapping[str, Any]
    """The code of its components at its last start, by "energy 'NAME'"."""


def note(store: Path, run_folder: Path) -> None:
    """Record in a store that a run uses it; a store that cannot be written stays as it is."""
    path = str(run_folder.resolve())
    with contextlib.suppress(GuidedCDError, OSError):
        file = store / NOTES / f"{digest(path)}.json"
        if not file.exists():
            write_json(file, {"run": path})


def uses(store: Path, identity: dict[str, Any]) -> list[StoreUse]:
    """The runs that use a store: those recorded in it, and those in the folder of runs that may use it.

    Args:
        store: The store.
        identity: The content of its store.json.

    Raises:
        GuidedCDError: The description of an unfinished run cannot be read, so that its needs are unknown.
    """
    recorded = set()
    for file in (store / NOTES).glob("*.json"):
        with contextlib.suppress(GuidedCDError):
            recorded.add(Path(read_json(file, {"run": str})["run"]))
    nearby = store.resolve().parent.parent if store.resolve().parent.name == "stores" else RUNS.resolve()
    users = []
    for folder in sorted(recorded | {path.parent for path in nearby.glob("*/run.json")}):
        if not (folder / "run.json").is_file():
            continue
        done = finished(folder) and holder(folder) is None
        try:
            run = read_run(folder / "run.json", for_sampling=True)
        except GuidedCDError:
            if done:
                continue
            raise
        if folder in recorded or may_use(run, identity):
            sources = {}
            with contextlib.suppress(GuidedCDError):
                sources = read_json(folder / SOURCES, {str: {}})
            users.append(StoreUse(folder=folder, run=run, is_finished=done, sources=sources))
    return users
