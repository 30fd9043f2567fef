"""Removes from latent stores what no run needs any more. No torch."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from guidedcd.console import console, file_size, plain_table, print_table
from guidedcd.errors import GuidedCDError
from guidedcd.files import leftovers
from guidedcd.locks import holder, locked
from guidedcd.plugins.registry import load_plugins
from guidedcd.plugins.sources import origin
from guidedcd.preprocessing import score_sets, shards
from guidedcd.preprocessing.identity import identify_scores
from guidedcd.preprocessing.preprocess import STORES
from guidedcd.training.store_uses import StoreUse, uses

RECENT_HOURS = 24.0
"""An unfinished store that was written since is kept: its command may only have been interrupted."""


@attrs.frozen(kw_only=True)
class Removal:
    """A folder that can be removed."""

    path: Path
    what: str
    """What it is, and why no run needs it."""
    size: int
    """Bytes."""


def prune(folders: Sequence[Path] = (), *, unused: bool = False, confirm: Callable[[], bool]) -> list[Removal]:
    """List what can be removed from stores, and remove it if `confirm` returns True.

    Args:
        folders: The stores; by default all in runs/stores.
        unused: Whether scores of the present code that no run has are removed too.
        confirm: Called after the list is printed, if it is not empty.

    Returns:
        What was removed.

    Raises:
        GuidedCDError: A folder is no store.
    """
    stores = list(folders) or sorted(path.parent for path in STORES.glob("*/store.json"))
    for store in folders:
        shards.read_identity(store)
    removals = [one for store in stores for one in removable(store, unused=unused, tell=True)]
    table = plain_table("size", "what", "folder", numbers=("size",))
    for one in removals:
        table.add_row(file_size(one.size), one.what, str(one.path))
    total = file_size(sum(one.size for one in removals))
    if not removals:
        console.print(f"prune    nothing to remove from {len(stores)} stores")
        return []
    print_table(table)
    console.print(f"prune    {total} in {len(removals)} folders")
    if not confirm():
        console.print("prune    nothing was removed")
        return []
    removed = [one for store in stores for one in _remove(store, removals, unused)]
    console.print(f"removed  {file_size(sum(one.size for one in removed))} in {len(removed)} folders")
    return removed


def _remove(store: Path, listed: Sequence[Removal], unused: bool) -> Iterator[Removal]:
    """Remove what was listed and still can be removed, while no other process writes the store."""
    if not any(one.path == store or store in one.path.parents for one in listed):
        return
    with locked(store, "the store"):
        paths = {one.path for one in listed}
        for one in removable(store, unused=unused, is_locked=True):
            if one.path in paths:
                # Without these files a folder that is removed in part counts as missing.
                for name in ("store.json", "scores.json"):
                    (one.path / name).unlink(missing_ok=True)
                shutil.rmtree(one.path, ignore_errors=True)
                yield one
        if store.exists():
            leftovers(store)


def removable(store: Path, *, unused: bool = False, tell: bool = False, is_locked: bool = False) -> list[Removal]:
    """What no unfinished or running run needs of a store.

    Args:
        store: The store.
        unused: Whether scores of the present code that no run has are removed too.
        tell: Whether to print why a store is kept as a whole.
        is_locked: Whether this process holds the lock of the store.
    """
    try:
        identity = shards.read_identity(store)
        users = uses(store, identity)
    except GuidedCDError as error:
        return _kept(store, f"its runs are unknown: {error}", tell)
    owner = None if is_locked else holder(store)
    owner = owner or next((pid for path in store.glob(".part-*") if (pid := holder(store, path.name))), None)
    if owner is not None:
        return _kept(store, f"it is being written ({owner})", tell)
    unfinished = [use for use in users if not use.is_finished]
    if absent := shards.missing(store, identity):
        if unfinished:
            return _kept(store, f"it is unfinished, and {unfinished[0].folder} needs it", tell)
        written = max(path.stat().st_mtime for path in store.iterdir() if not path.name.startswith("."))
        if time.time() - written < RECENT_HOURS * 3600:
            return _kept(store, f"it is unfinished, but was written in the last {RECENT_HOURS:.0f} hours", tell)
        what = f"unfinished store, {len(absent)} of {identity['shards']} shards missing, no unfinished run"
        return [_removal(store, what)]
    removals = [
        _removal(folder, f"scores of {score_sets.read(folder)['scores']['energy']}: {why}")
        for folder in score_sets.listed(store)
        if (why := _why(store, folder, users, unused))
    ]
    inversions = store / shards.INVERSIONS
    if inversions.is_dir() and users and not unfinished:
        removals.append(_removal(inversions, f"inversions: all {len(users)} runs of this store are finished"))
    return removals


def _why(store: Path, folder: Path, users: Sequence[StoreUse], unused: bool) -> str:
    """Why no run needs the scores in `folder`; "" if one does or may."""
    scores = score_sets.read(folder)["scores"]
    name = scores["energy"]
    present = _present_code(name)
    code = {key: scores[key] for key in score_sets.CODE}
    of_run = [use for use in users if _has(use, scores)]
    for use in of_run:
        recorded = use.sources.get(f"energy '{name}'")
        if not use.is_finished and (present is None or code in (present, recorded)):
            return ""
    if present is None:
        return "the energy is not installed"
    if code != present:
        version = f"version {scores['version']}" if scores["version"] != present["version"] else "another source"
        return f"{version} of its code"
    return "" if of_run or not unused else "no run has this energy with these options"


def _has(use: StoreUse, scores: dict[str, Any]) -> bool:
    """Whether a run has an energy with the options of these scores, whatever its code."""
    if scores["energy"] not in use.run.energies or use.run.preprocess.fraction != scores["fraction"]:
        return False
    try:
        return bool(identify_scores(use.run, scores["energy"])["options"] == scores["options"])
    except GuidedCDError:  # its energy is not installed, so that its options are only recorded
        return True


def _present_code(name: str) -> dict[str, str] | None:
    """The code of the installed energy of this name, or None."""
    try:
        return origin(load_plugins().get("energy", name.partition(":")[0]))
    except GuidedCDError:
        return None


def _removal(path: Path, what: str) -> Removal:
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return Removal(path=path, what=what, size=size)


def _kept(store: Path, why: str, tell: bool) -> list[Removal]:
    if tell:
        console.print(f"kept     {store}: {why}", markup=False)
    return []
