"""Checks a latent store: checksums of all shards, and the teacher's predictions for some videos computed again."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import safe_open
from torch import Tensor

from guidedcd.acceleration.apply import accelerated
from guidedcd.acceleration.precision import relative_error
from guidedcd.config.resolve import read_run
from guidedcd.config.run import Run
from guidedcd.console import progress
from guidedcd.data.clips import Clip
from guidedcd.devices import blame_memory
from guidedcd.devices import device as find_device
from guidedcd.errors import GuidedCDError
from guidedcd.models.teachers.contract import build_teacher
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.preprocessing import ragged, score_sets, shard_files, shards
from guidedcd.preprocessing.identity import identify
from guidedcd.preprocessing.score_sets import ScoreFolders
from guidedcd.preprocessing.store_writer import StoreWriter

PREDICTIONS, SCORES = 0.01, 0.05
"""Largest relative error |computed - stored| / |stored| of predictions and of scores in float32. Passes of another size
round differently, and scores depend on the position of the largest attention entry."""
HALF = 5
"""Factor on both where the store or the network has 16 bits."""


def verify_store(folder: Path, *, samples: int = 0, device: str | None = None, seed: int = 0) -> dict[str, Any]:
    """Check a store.

    Args:
        folder: The store, complete or not.
        samples: Number of its videos, chosen at random, whose draws the teacher computes again.
        device: Device of the teacher; by default that of the run that began the store.
        seed: Seed of the choice.

    Returns:
        {"shards": int, "missing": int, "samples": {sample id: {tensor: relative error}}}.

    Raises:
        GuidedCDError: A shard is damaged or differs from the teacher's predictions; the error names it.
    """
    identity = shards.read_identity(folder)
    with progress("checksums", identity["shards"], unit="shards") as advance:
        shards.verify(folder, advance)
    missing = shards.missing(folder, identity)
    result: dict[str, Any] = {"shards": identity["shards"], "missing": len(missing), "samples": {}}
    if not samples:
        return result
    run, teacher = _origin(folder, device)
    shard_files.begin(folder, identify(run, teacher))
    scores = score_sets.folders(folder, run, identity)
    present = sorted(set(range(identity["shards"])) - set(missing))
    videos = [(n, v) for n in present for v in range(len(shards.read_shard(folder, n)["samples"]))]
    chosen = sorted(random.Random(seed).sample(videos, min(samples, len(videos))))
    is_half = "16" in run.preprocess.dtype or run.preprocess.precision != "no"
    settings = run.preprocess
    with accelerated(
        teacher, fast="no", precision=settings.precision, quantize=settings.quantize, in_place=True
    ) as fast_teacher:
        writer = StoreWriter(run, fast_teacher)
        with progress("teacher", len(chosen), unit="videos") as advance:
            for number, video in chosen:
                clip = _clip(writer, folder, number, video)
                tensors = writer.builder.shard([clip], lambda share: None)[1]
                errors = _errors(tensors, folder, number, video, scores)
                _check(errors, clip, folder, number, HALF if is_half else 1, scores)
                result["samples"][clip.id] = errors
                advance()
    return result


def _check(
    errors: dict[str, float], clip: Clip, folder: Path, number: int, factor: float, scores: ScoreFolders
) -> None:
    """Compare the errors of a clip of shard `number` with the tolerances times `factor`.

    Raises:
        GuidedCDError: An error is larger.
    """
    for key, error in errors.items():
        allowed = factor * (SCORES if key.startswith("score") else PREDICTIONS)
        if not error <= allowed:
            owner = scores.get(key.removeprefix("score.")) or folder  # of the file
            raise GuidedCDError(
                f"shard {owner / shards.shard_name(number)}.safetensors differs from the teacher's predictions for "
                f"'{clip.id}': {key} differs by {error:.2g} of its size, {allowed:.2g} is allowed. "
                f"Delete {shards.shard_name(number)}.json and preprocess again."
            )


def _origin(folder: Path, device: str | None) -> tuple[Run, Teacher]:
    """The run that began a store, and its teacher on the device."""
    if not (folder / "run.json").exists():
        raise GuidedCDError(f"{folder} has no run.json, so its teacher is unknown; --samples 0 checks the files only.")
    run = read_run(folder / "run.json")
    run = run if device is None else attrs.evolve(run, device=device)
    with blame_memory("the teacher"):
        return run, build_teacher(run.teacher, find_device(run.device))


def _clip(writer: StoreWriter, folder: Path, number: int, video: int) -> Clip:
    """The clip of the `video`-th sample of a shard, read from the data."""
    sample = shards.read_shard(folder, number)["samples"][video]["id"]
    for position in writer.positions(number):
        clips, _ = writer.mixture.read(range(position, position + 1))
        if clips and clips[0].id == sample:
            return clips[0]
    raise GuidedCDError(
        f"shard {folder / shards.shard_name(number)} has a sample '{sample}' that the data no longer have."
    )


def _errors(
    computed: dict[str, Tensor], folder: Path, number: int, video: int, scores: ScoreFolders
) -> dict[str, float]:
    """By tensor, the relative error of the stored values of one video; indices and seeds must be equal.

    Scores that do not exist, and inversions, are left out.
    """
    errors: dict[str, float] = {}
    for name, part in scores.items():
        suffix, path = "" if part else f".{name}", (part or folder) / f"{shards.shard_name(number)}.safetensors"
        if not path.exists():
            continue
        with safe_open(path, framework="pt") as file:
            scored = [int(row) for row in _rows(file, f"row{suffix}", video)[0] if row >= 0]
            rms = [_rows(file, f"rms{suffix}", row)[0] for row in scored]
            rows = [_rows(file, f"score{suffix}", row).float()[0] for row in scored]
        tensor = computed[f"score.{name}"]
        expected = tensor.float() * computed[f"rms.{name}"].view(-1, *[1] * (tensor.dim() - 1))
        stored = [row * size for row, size in zip(rows, rms, strict=True)]
        errors[f"score.{name}"] = _relative(expected, torch.stack(stored)) if stored or len(expected) else 0.0
    with safe_open(folder / f"{shards.shard_name(number)}.safetensors", framework="pt") as file:
        keys = set(file.keys())
        for key, tensor in computed.items():
            if key in keys and not key.startswith((*shard_files.PARTS, *ragged.STARTING)):
                errors[key] = _relative(tensor, _rows(file, key, video), exact=key in ("index", "noise_seed"))
        for key in ragged.keys(computed):
            errors[ragged.PREFIX + key] = _relative(ragged.of_tensors(computed, key), ragged.of_video(file, key, video))
    return errors


def _rows(file: Any, key: str, row: int) -> Tensor:
    rows: Tensor = file.get_slice(key)[row : row + 1]
    return rows


def _relative(computed: Tensor, stored: Tensor, exact: bool = False) -> float:
    """|computed - stored| / |stored|; infinite where the shapes differ, or the values where they must be equal."""
    if computed.shape != stored.shape:
        return float("inf")
    if exact:
        return 0.0 if torch.equal(computed.cpu(), stored) else float("inf")
    return relative_error(computed.cpu(), stored)
