"""Whether a latent store holds what its teacher says: checksums of every shard, and some videos computed anew."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import safe_open
from torch import Tensor

from guidedcd.acceleration.apply import accelerated
from guidedcd.config.resolve import read_run
from guidedcd.config.run import Run
from guidedcd.console import console, progress
from guidedcd.data.clips import Clip
from guidedcd.devices import blame_memory
from guidedcd.devices import device as find_device
from guidedcd.errors import GuidedCDError
from guidedcd.preprocessing import shards, store
from guidedcd.preprocessing.identity import identify
from guidedcd.preprocessing.writer import StoreWriter

PREDICTIONS, SCORES = 0.01, 0.05
"""Largest relative error |found - stored| / |stored| of predictions and of scores, which follow where attention has its
largest entry, in float32; passes of another size round otherwise."""
HALF = 5
"""How much more is allowed where the store or the network has 16 bits."""


def verify_store(folder: Path, *, samples: int = 0, device: str | None = None, seed: int = 0) -> dict[str, Any]:
    """Check a store.

    Args:
        folder: The store, finished or filled in part.
        samples: How many of its videos, chosen at random, the teacher sees again, with all their draws.
        device: Where; by default as the run that began the store.
        seed: Of the choice.

    Returns:
        {"shards", "missing": how many, "samples": {sample id: {tensor: relative error}}}.

    Raises:
        GuidedCDError: A shard is damaged or holds something else than the teacher says; it is named.
    """
    identity = shards.read_identity(folder)
    with progress("checksums", identity["shards"], unit="shards") as advance:
        shards.verify(folder, advance)
    absent = shards.missing(folder, identity)
    found: dict[str, Any] = {"shards": identity["shards"], "missing": len(absent), "samples": {}}
    if not samples:
        return found
    run, teacher = _origin(folder, device)
    identified = identify(run, teacher)
    store.begin(folder, identified)
    there = sorted(set(range(identity["shards"])) - set(absent))
    held = [(n, v) for n in there for v in range(len(shards.read_shard(folder, n)["samples"]))]
    chosen = sorted(random.Random(seed).sample(held, min(samples, len(held))))
    factor = HALF if "16" in run.preprocess.dtype or run.preprocess.precision != "no" else 1
    with accelerated(teacher, fast="no", precision=run.preprocess.precision, in_place=True) as rounded_teacher:
        filler = StoreWriter(run, rounded_teacher)
        with progress("teacher", len(chosen), unit="videos") as advance:
            for number, video in chosen:
                clip = _clip(filler, folder, number, video)
                errors = _errors(filler.worker.shard([clip], lambda share: None)[1], folder, number, video)
                for key, error in errors.items():
                    allowed = factor * (SCORES if key.startswith("score") else PREDICTIONS)
                    if not error <= allowed:
                        raise GuidedCDError(
                            f"shard {folder / shards.shard_name(number)}.safetensors does not hold what the teacher "
                            f"says of '{clip.id}': {key} differs by {error:.2g} of its size, {allowed:.2g} is allowed. "
                            f"Delete {shards.shard_name(number)}.json and preprocess again."
                        )
                found["samples"][clip.id] = errors
                advance()
    return found


def _origin(folder: Path, device: str | None) -> tuple[Run, Any]:
    """The run that began a store, and its teacher."""
    if not (folder / "run.json").exists():
        raise GuidedCDError(
            f"{folder} has no run.json to say which teacher made it; --samples 0 checks the files only."
        )
    run = read_run(folder / "run.json")
    run = run if device is None else attrs.evolve(run, device=device)
    with blame_memory("the teacher"):
        return run, run.teacher.build().to(find_device(run.device))


def _clip(filler: StoreWriter, folder: Path, number: int, video: int) -> Clip:
    """The clip that is the `video`-th of a shard."""
    wanted = shards.read_shard(folder, number)["samples"][video]["id"]
    for place in filler.places(number):
        clips, _ = filler.mixture.read(range(place, place + 1))
        if clips and clips[0].id == wanted:
            return clips[0]
    raise GuidedCDError(
        f"shard {folder / shards.shard_name(number)} has a sample '{wanted}' that the data no longer have."
    )


def _errors(fresh: dict[str, Tensor], folder: Path, number: int, video: int) -> dict[str, float]:
    """By tensor, the relative error of what is stored of one video; indices and seeds must be equal."""
    with safe_open(folder / f"{shards.shard_name(number)}.safetensors", framework="pt") as file:
        kept: Callable[[str], Tensor] = lambda key: file.get_slice(key)[video : video + 1]  # noqa: E731
        errors = {}
        for key, mine in fresh.items():
            if key.startswith(("score.", "rms.", "row.")):
                continue
            errors[key] = _relative(mine, kept(key), exact=key in ("index", "noise_seed"))
        for key in fresh:
            if key.startswith("score."):
                name = key.removeprefix("score.")
                rows = [int(row) for row in kept(f"row.{name}")[0] if row >= 0]
                stored = [
                    file.get_slice(key)[row : row + 1].float()[0] * file.get_slice(f"rms.{name}")[row : row + 1][0]
                    for row in rows
                ]
                scale = fresh[f"rms.{name}"].view(-1, *[1] * (fresh[key].dim() - 1))
                mine = fresh[key].float() * scale
                errors[key] = _relative(mine, torch.stack(stored)) if stored or len(mine) else 0.0
    return errors


def _relative(mine: Tensor, stored: Tensor, exact: bool = False) -> float:
    if mine.shape != stored.shape:
        return float("inf")
    if exact:
        return 0.0 if torch.equal(mine.cpu(), stored) else float("inf")
    mine, stored = mine.double().cpu(), stored.double()
    return float((mine - stored).norm() / stored.norm().clamp_min(1e-30))


def _bytes(folder: Path, number: int) -> int:
    try:
        return (folder / f"{shards.shard_name(number)}.safetensors").stat().st_size
    except FileNotFoundError:
        raise shards.damaged(folder, number, "it is missing") from None


def show_store(folder: Path) -> None:
    """Print what a store holds."""
    identity = shards.read_identity(folder)
    absent = shards.missing(folder, identity)
    there = sorted(set(range(identity["shards"])) - set(absent))
    about = [shards.read_shard(folder, number) for number in there]
    size = sum(_bytes(folder, number) for number in there)
    from guidedcd.preprocessing.estimates import human

    used, skipped = sum(len(one["samples"]) for one in about), sum(len(one["skipped"]) for one in about)
    shape = identity["geometry"]
    window = "" if identity["window"] is None else f", scores on the noisiest {identity['window']:.0%}"
    state = f"{len(there)} of {identity['shards']} shards" + ("" if absent else ", complete")
    lines = {
        "teacher": f"{identity['teacher']['name']} {identity['teacher']['fingerprint'][:12]}, "
        f"{shape['frames']} frames of {shape['width']}x{shape['height']} at {shape['fps']:g} fps",
        "data": ", ".join(one["name"] for one in identity["data"]),
        "energies": ", ".join(f"{n} ({c['reference']})" for n, c in identity["energies"].items()) or "none",
        "grid": f"{identity['steps']} steps{window}",
        "videos": f"{used} of {identity['videos']}" + (f", {skipped} skipped" if skipped else ""),
        "draws": f"{used * identity['draws_per_video']}, {identity['draws_per_video']} of each video",
        "stored as": f"{identity['dtype']}, {human(size)}",
        "shards": state,
    }
    if absent:
        lines["missing"] = ", ".join(map(str, absent[:20])) + (", ..." if len(absent) > 20 else "")
    for name, text in lines.items():
        console.print(f"{name:9} {text}", markup=False, highlight=False)
