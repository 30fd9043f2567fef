"""Videos to latent store: the frozen teacher's predictions and the energies' gradients, once, resumable by shard.

The work itself is in `guidedcd.worker`. A store may be filled in parts: part I of N has every N-th shard from shard I
on, and several machines fill one folder, or each its own, whose shards are put together afterwards.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guidedcd.acceleration.apply import accelerated
from guidedcd.config.run import Run
from guidedcd.console import console
from guidedcd.devices import blame_memory, device, process
from guidedcd.errors import GuidedCDError
from guidedcd.files import digest, leftovers, write_json
from guidedcd.locks import locked
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.preprocessing import estimates, shards, store
from guidedcd.preprocessing.identity import identify
from guidedcd.preprocessing.writer import StoreWriter, too_many_skipped

WHOLE = (0, 1)
"""The only part of a store that is not divided."""


def preprocess(
    run: Run,
    *,
    store_folder: Path | None = None,
    teacher: Teacher | None = None,
    shard: tuple[int, int] = WHOLE,
    fill_parts: bool = True,
) -> Path:
    """Compute whatever of the run's latent store is missing.

    Args:
        run: What to distil; only what the store depends on is read.
        store_folder: Where; by default `runs/stores/<fingerprint>/`.
        teacher: The run's teacher, if it is loaded already; it is given back as it was.
        shard: (I, N): only part I of N, 0 <= I < N.
        fill_parts: Whether shards that a store filled in parts still lacks may be computed here.

    Returns:
        The folder of the store, finished unless a part was asked for.

    Raises:
        GuidedCDError: The folder belongs to another run, is written by another process, the disk is full or too small,
            or the store is filled in parts and some are missing.
    """
    is_own = teacher is None
    if teacher is None:
        with blame_memory("the teacher"):
            teacher = run.teacher.build().to(device(run.device))
    identity = identify(run, teacher)
    folder = store_folder or Path("runs/stores") / digest(identity)
    if (folder / "store.json").exists():
        store.begin(folder, identity)
    rank, world = process()
    console.quiet = rank > 0
    if absent := _missing(folder, identity, shard):
        if not fill_parts and any(folder.glob(".part-*")):
            raise shards.incomplete(folder, identity, absent)
        options = run.preprocess
        with accelerated(teacher, fast=options.fast, precision=options.precision, in_place=is_own) as fast_teacher:
            # Mistakes in the data and the energies show before anything is written.
            filler = StoreWriter(run, fast_teacher)
            if rank == 0:
                estimates.check(folder, run, teacher, len(absent))
            # Every process takes its share; the first one holds the lock for all that were launched together.
            with _held(folder, shard) if rank == 0 else contextlib.nullcontext():
                if rank == 0:
                    leftovers(folder)
                while rank and not (folder / "store.json").exists():
                    time.sleep(0.1)
                store.begin(folder, identity, run.to_dict())
                # By number, not by place in the list: a process that comes later finds fewer missing.
                if mine := [n for n in _missing(folder, identity, shard) if n // shard[1] % world == rank]:
                    filler.fill(folder, mine)
                while _missing(folder, identity, shard):
                    time.sleep(0.1)
    if shard != WHOLE and (absent := shards.missing(folder, identity)):
        console.print(f"store    {folder}: part {shard[0]}/{shard[1]} is done, {len(absent)} shards of others missing")
        return folder
    return _checked(run, folder)


def report(opened: store.LatentStore) -> dict[str, Any]:
    """What became of every clip of a finished store: used + skipped = listed, and each loss with its reason."""
    lost = opened.skipped
    used = Counter(sample["dataset"] for sample in opened.samples)
    missed = Counter(entry["id"].rpartition("/")[0] for entry in lost)
    return {
        "listed": len(opened.samples) + len(lost),
        "used": len(opened.samples),
        "skipped": len(lost),
        "draws": len(opened),
        "datasets": {name: {"used": used[name], "skipped": missed[name]} for name in sorted({*used, *missed})},
        "losses": lost,
    }


def _missing(folder: Path, identity: dict[str, Any], shard: tuple[int, int]) -> list[int]:
    """The shards of a part that are not there yet."""
    return [n for n in shards.missing(folder, identity) if n % shard[1] == shard[0]]


@contextlib.contextmanager
def _held(folder: Path, shard: tuple[int, int]) -> Iterator[None]:
    """Be the only writer of the store, or of one part of it: then others may write other parts, and none the whole."""
    with locked(folder, "the store", shared=shard != WHOLE):
        if shard == WHOLE:
            yield
        else:
            with locked(folder, f"part {shard[0]}/{shard[1]} of the store", f".part-{shard[0]}-of-{shard[1]}"):
                yield


SHOWN = 10
"""So many skipped clips are printed; the report has them all."""


def _checked(run: Run, folder: Path) -> Path:
    """The finished store in `folder`, unless too many of its clips could not be used."""
    opened = store.LatentStore(folder)
    lost, used = len(opened.skipped), len(opened.samples)
    write_json(folder / "report.json", report(opened))
    for entry in opened.skipped[:SHOWN]:
        console.print(f"skipped  {entry['id']}: {entry['reason']}", markup=False)
    if lost > SHOWN:
        console.print(f"skipped  {lost - SHOWN} more, see {folder / 'report.json'}")
    if lost > run.preprocess.max_skipped * (lost + used):
        raise too_many_skipped(opened.skipped, lost + used, run.preprocess.max_skipped)
    if not used:
        raise GuidedCDError(f"none of {lost} clips could be used (the first: {opened.skipped[0]['reason']}).")
    note = f", {lost} clips skipped" if lost else ""
    console.print(f"store    {folder}: {used} videos, {len(opened)} draws{note}")
    return folder
