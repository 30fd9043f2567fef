"""Preprocessing: computes the missing shards of a run's latent store, in one process or several.

`guidedcd.preprocessing.store_writer` computes the shards. A store may be filled in parts: part I of N consists of
every N-th shard from shard I on. Several machines fill one folder, or each its own, whose shards are merged by copying.
A process that begins what another one is computing waits for it, and goes on itself if the other one dies.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from guidedcd.acceleration.apply import accelerated
from guidedcd.acceleration.flash_attention import flash_attention
from guidedcd.config.run import Run
from guidedcd.console import console, duration, waiting
from guidedcd.data.buckets import bucket_of
from guidedcd.data.routing import Sample
from guidedcd.devices import blame_memory, device, launch, process
from guidedcd.documents import read_json
from guidedcd.energies.output import OutputGradients
from guidedcd.energies.traits import check_references, stored_part
from guidedcd.errors import GuidedCDError
from guidedcd.files import digest, leftovers, write_json
from guidedcd.locks import holder, locked, noted
from guidedcd.models.student import time_embedding
from guidedcd.models.teachers.contract import build_teacher, check, rehearse
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.preprocessing import estimates, output_shares, rounding, score_sets, shard_files, shards, shares, store
from guidedcd.preprocessing.identity import identify, is_same
from guidedcd.preprocessing.store_writer import ScoreWriter, StoreWriter, too_many_skipped

STORES = Path("runs/stores")
"""The folder of all stores."""
WHOLE = (0, 1)
"""All shards: part 0 of 1."""


def preprocess(
    run: Run,
    *,
    store_folder: Path | None = None,
    teacher: Teacher | None = None,
    shard: tuple[int, int] = WHOLE,
    fill_parts: bool = True,
    accept: Callable[[Sample], object] | None = None,
) -> Path:
    """Compute the missing shards of the run's latent store, once no other process computes them.

    Args:
        run: The configuration.
        store_folder: The store's folder; by default `runs/stores/<fingerprint>/`.
        teacher: The run's teacher, if it is loaded already; it is not changed.
        shard: (I, N) for part I of N only, 0 <= I < N.
        fill_parts: Whether to compute missing shards of a store that other processes fill in parts.
        accept: Called with the metadata of every clip before anything of it is computed; an error of it ends the run.

    Returns:
        The folder of the store, which is complete unless `shard` names a part.

    Raises:
        GuidedCDError: The folder belongs to another run, the disk is full or too small, too many clips are unreadable,
            or parts of the store are missing.
    """
    whole, run = run, stored_part(run)
    is_own = teacher is None
    check_references(whole)
    if teacher is None:
        with blame_memory("the teacher"):
            teacher = build_teacher(run.teacher, device(run.device))
    if run.preprocess.buckets and str(bucket_of(teacher.geometry)) not in run.preprocess.buckets:
        raise GuidedCDError(
            f"--preprocess.buckets does not list {bucket_of(teacher.geometry)}, the size of this teacher's videos; "
            "`preprocess_all` of guidedcd.preprocessing.bucket_stores computes the store of each bucket."
        )
    check(teacher, str(run.teacher.component()))
    time_embedding(teacher)  # no student can be made of a network without one
    outputs = OutputGradients(whole, teacher)
    outputs.rehearse(teacher.geometry.latent_shape, teacher.device, run.seed)
    if note := _other_network(run, teacher):
        console.print(f"note     {note}", markup=False)
    identity = identify(run, teacher)
    folder = store_folder or find_store(identity, run)
    stored = identity
    if (folder / "store.json").exists():
        shard_files.begin(folder, identity)
        stored = shards.read_identity(folder)
    console.quiet = process()[0] > 0
    scores = score_sets.folders(folder, run, stored)
    for sentence in score_sets.notes(folder, run, scores):
        console.print(f"store    {folder}: {sentence}", markup=False)
    absent, extended = _missing(folder, identity, shard), _without_scores(folder, identity, scores, shard)
    if absent or extended:
        # Lock files of parts remain in a complete store, which may lack the scores of a new energy.
        if absent and not fill_parts and any(folder.glob(".part-*")):
            raise shards.incomplete(folder, identity, absent)
        with blame_memory("the teacher"):
            rehearse(teacher, str(run.teacher.component()), run.seed)
        _compute(run, teacher, folder, identity, scores, shard, accept, in_place=is_own)
    if shard != WHOLE and (rest := _unfinished(folder, identity, scores)):
        console.print(f"store    {folder}: part {shard[0]}/{shard[1]} is done, {rest}")
        return folder
    latents = _checked(run, folder, scores)
    if process()[0] == 0 and len(latents):
        shares.print_shares(folder, run, shards.read_identity(folder), scores)
        output_shares.print_shares(latents, whole, teacher, outputs)
    return folder


def _other_network(run: Run, teacher: Teacher) -> str:
    """A sentence about noise levels at which another network of the teacher predicts than the student's, or ""."""
    own = getattr(teacher, "noise_range", (0.0, 1.0))
    low, high = run.preprocess.noise_range
    if own[0] <= low and high <= own[1]:
        return ""
    return (
        f"the student is a copy of the network of {own[0]:g} to {own[1]:g} of the grid, and the draws "
        f"lie in {low:g} to {high:g}: --preprocess.noise-range {own[0]:g},{own[1]:g} keeps to its noise levels."
    )


def _compute(
    run: Run,
    teacher: Teacher,
    folder: Path,
    identity: dict[str, Any],
    scores: score_sets.ScoreFolders,
    shard: tuple[int, int],
    accept: Callable[[Sample], object] | None,
    *,
    in_place: bool,
) -> None:
    """Compute the missing shards of a part, and the scores that its other shards lack."""
    rank, world = process()
    absent = {*_missing(folder, identity, shard)}
    extended = _without_scores(folder, identity, scores, shard)
    options = run.preprocess
    before = rounding.measured(teacher, run) if options.quantize != "no" and rank == 0 else None
    with (
        flash_attention(options, teacher.device),
        accelerated(
            teacher, fast=options.fast, precision=options.precision, quantize=options.quantize, in_place=in_place
        ) as fast_teacher,
    ):
        if before is not None:
            after = rounding.measured(fast_teacher, run)
            console.print(f"weights  {rounding.line(before, after, fast_teacher)}", markup=False)
        # Errors in the data and the energies are raised before anything is written.
        writer = StoreWriter(run, fast_teacher, accept) if absent else None
        extender = ScoreWriter(run, fast_teacher, scores) if extended else None
        if writer is not None:
            writer.check()
        if used := writer or extender:
            used.builder.rehearse()
        is_first = rank == 0
        is_held = is_first and holder(folder) is not None
        if is_first and not is_held:
            estimates.check(folder, run, teacher, len(absent), score_sets.count(scores, extended))
        # Every process computes its share; the first one holds the lock for all that were launched together.
        with _locked(folder, shard) if is_first else contextlib.nullcontext():
            if is_held:
                absent = {*_missing(folder, identity, shard)}
                extended = _without_scores(folder, identity, scores, shard)
            if is_held and (absent or extended):
                estimates.check(folder, run, teacher, len(absent), score_sets.count(scores, extended))
            if is_first:
                leftovers(folder)
            while not (is_first or (_is_locked_for(folder, shard) and (folder / "store.json").exists())):
                time.sleep(0.1)
            shard_files.begin(folder, identity, run.to_dict())
            score_sets.begin_all(scores, run)
            # By number, not by position in the list: a process that starts later lists fewer missing shards.
            own = [n for n in _missing(folder, identity, shard) if n // shard[1] % world == rank]
            if own:
                writer = writer or StoreWriter(run, fast_teacher, accept)  # another process has removed them meanwhile
                writer.fill(folder, own, scores)
            # Another process may have computed shards with the scores of its own energies.
            lacking = [n for n in _without_scores(folder, identity, scores, shard) if n // shard[1] % world == rank]
            if lacking:
                extender = extender or ScoreWriter(run, fast_teacher, scores)
                extender.fill(folder, lacking)
            written = {*own, *lacking}
            while absent := {*_missing(folder, identity, shard), *_without_scores(folder, identity, scores, shard)}:
                if vanished := written & absent:
                    raise _vanished(folder, len(vanished))
                time.sleep(0.1)  # for the shards of the other processes


def _vanished(folder: Path, count: int) -> GuidedCDError:
    """The error for shards that were written and are not there any more."""
    return GuidedCDError(
        f"shards of the store {folder} have vanished while it was being written ({count} of them). Something else "
        "deletes files there: stop it, then run the same command again."
    )


def report(latents: store.LatentStore) -> dict[str, Any]:
    """The contents of report.json: counts of used and skipped clips, by dataset too, and each skipped clip."""
    used = Counter(sample["dataset"] for sample in latents.samples)
    skipped = Counter(entry["id"].rpartition("/")[0] for entry in latents.skipped)
    return {
        "listed": len(latents.samples) + len(latents.skipped),
        "used": len(latents.samples),
        "skipped": len(latents.skipped),
        "draws": len(latents),
        "datasets": {name: {"used": used[name], "skipped": skipped[name]} for name in sorted({*used, *skipped})},
        "losses": latents.skipped,
    }


def _missing(folder: Path, identity: dict[str, Any], shard: tuple[int, int]) -> list[int]:
    """The shards of a part that do not exist yet."""
    return [n for n in shards.missing(folder, identity) if n % shard[1] == shard[0]]


def _without_scores(
    folder: Path, identity: dict[str, Any], scores: score_sets.ScoreFolders, shard: tuple[int, int]
) -> list[int]:
    """The shards of a part that exist, but lack scores of an energy."""
    absent = set(_missing(folder, identity, shard))
    own = [n for n in range(identity["shards"]) if n % shard[1] == shard[0]]
    return [number for number in own if number not in absent and score_sets.without(scores, number)]


def _unfinished(folder: Path, identity: dict[str, Any], scores: score_sets.ScoreFolders) -> str:
    """What other parts have yet to compute, for a message; "" if the store is complete."""
    if absent := shards.missing(folder, identity):
        return f"{len(absent)} shards of other parts are missing"
    lacking = _without_scores(folder, identity, scores, WHOLE)
    return f"{len(lacking)} shards of other parts lack scores" if lacking else ""


def find_store(identity: dict[str, Any], run: Run) -> Path:
    """The folder of the store with this identity in `runs/stores`, or of a new one.

    Stores of format 1, and those of datasets whose files are gone, have other names. Of several, the one with the
    scores of most of the run's energies is chosen.
    """
    expected = STORES / digest(identity)
    if expected.exists():
        return expected
    matching: list[tuple[int, Path]] = []
    for path in sorted(STORES.glob("*/store.json")):
        with contextlib.suppress(GuidedCDError, OSError):
            stored = shards.read_identity(path.parent)
            if is_same(stored, identity):
                folders = score_sets.folders(path.parent, run, stored).values()
                matching.append((sum(scores is None or scores.exists() for scores in folders), path.parent))
    return max(matching)[1] if matching else expected


@contextlib.contextmanager
def _locked(folder: Path, shard: tuple[int, int]) -> Iterator[None]:
    """Lock the whole store, or one part of it: then other processes may write other parts, but not the whole store.

    Where another process holds it, wait until that one has finished or has died.
    """
    names = [".lock"] if shard == WHOLE else [".lock", _part_lock(shard)]
    waited: dict[str, float] = {}
    with contextlib.ExitStack() as locks:
        with waiting() as show:

            def wait(owner: str, seconds: float) -> None:
                waited[owner] = seconds
                so_far = f", {duration(seconds)} so far" if seconds >= 1 else ""
                show(f"store    {folder}: {owner} is computing it; waiting for it{so_far} (Ctrl-C stops)")

            for name in names:
                shared = name == ".lock" and shard != WHOLE
                locks.enter_context(locked(folder, "the store", name, shared=shared, wait=wait, note=launch()))
        if waited:
            text = f"store    {folder}: waited {duration(max(waited.values()))} for {', '.join(waited)}"
            console.print(text, markup=False)
        yield


def _part_lock(shard: tuple[int, int]) -> str:
    return f".part-{shard[0]}-of-{shard[1]}"


def _is_locked_for(folder: Path, shard: tuple[int, int]) -> bool:
    """Whether the first process of this launch holds the lock; without an address of the launch this is unknown."""
    return not launch() or noted(folder, launch(), ".lock" if shard == WHOLE else _part_lock(shard))


SHOWN = 10
"""Number of skipped clips that are printed; report.json lists all of them."""


def _write_report(path: Path, content: dict[str, Any]) -> None:
    """Write report.json where it differs; a complete store can be read-only, for several users."""
    with contextlib.suppress(GuidedCDError):
        if read_json(path) == content:
            return
    write_json(path, content)


def _checked(run: Run, folder: Path, scores: score_sets.ScoreFolders) -> store.LatentStore:
    """Write the report of the complete store in `folder`, print a summary, and return the store.

    Raises:
        GuidedCDError: Too many of its clips could not be used, or none.
    """
    latents = store.LatentStore(folder, scores)
    skipped, used = len(latents.skipped), len(latents.samples)
    _write_report(folder / "report.json", report(latents))
    for entry in latents.skipped[:SHOWN]:
        console.print(f"skipped  {entry['id']}: {entry['reason']}", markup=False)
    if skipped > SHOWN:
        console.print(f"skipped  {skipped - SHOWN} more, see {folder / 'report.json'}")
    if skipped > run.preprocess.max_skipped * (skipped + used):
        raise too_many_skipped(latents.skipped, skipped + used, run.preprocess.max_skipped)
    if not used and run.preprocess.buckets:
        console.print(f"store    {folder}: no clip falls into this bucket")
        return latents
    if not used:
        raise GuidedCDError(f"none of {skipped} clips could be used (the first: {latents.skipped[0]['reason']}).")
    note = f", {skipped} clips skipped" if skipped else ""
    console.print(f"store    {folder}: {used} videos, {len(latents)} draws{note}")
    return latents
