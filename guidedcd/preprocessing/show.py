"""Prints a latent store: its teacher, data, energies and size. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from guidedcd.console import console, file_size
from guidedcd.preprocessing import score_sets, shards, shares

LISTED = 20
"""Number of missing shards that are listed."""


def show_store(folder: Path) -> None:
    """Print a description of a store, complete or not.

    Raises:
        GuidedCDError: The folder is no store, or a shard is damaged.
    """
    identity = shards.read_identity(folder)
    missing = shards.missing(folder, identity)
    present = sorted(set(range(identity["shards"])) - set(missing))
    manifests = [shards.read_shard(folder, number) for number in present]
    size = sum(_bytes(folder, number) for number in present)
    used = sum(len(manifest["samples"]) for manifest in manifests)
    skipped = sum(len(manifest["skipped"]) for manifest in manifests)
    shape = identity["geometry"]
    parts = score_sets.listed(folder)
    size += sum(path.stat().st_size for path in (folder / shards.INVERSIONS).glob("*.safetensors"))
    lines = {
        "teacher": f"{identity['teacher']['name']} {identity['teacher']['fingerprint'][:12]}, "
        f"{shape['frames']} frames of {shape['width']}x{shape['height']} at {shape['fps']:g} fps",
        "data": ", ".join(dataset["name"] for dataset in identity["data"]),
        "grid": f"{identity['steps']} steps",
        "videos": f"{used} of {identity['videos']}" + (f", {skipped} skipped" if skipped else ""),
        "draws": f"{used * identity['draws_per_video']}, {identity['draws_per_video']} of each video",
        "stored as": f"{identity['dtype']}, {file_size(size)}",
        "shards": f"{len(present)} of {identity['shards']} shards" + ("" if missing else ", complete"),
    }
    if missing:
        lines["missing"] = ", ".join(map(str, missing[:LISTED])) + (", ..." if len(missing) > LISTED else "")
    for name, text in lines.items():
        console.print(f"{name:9} {text}", markup=False, highlight=False)
    energies = identity.get("energies", {})
    for name, options in energies.items():
        text = f"{name} ({options['reference']}), in the shards, of a source that was not recorded"
        console.print(f"energy    {text}", markup=False, highlight=False)
    measured = shares.read_measured(folder)
    if not parts and not energies and not measured:
        console.print("energies  none")
    for part in parts:
        _show_scores(folder, identity, part)
    for scores, share in measured:
        text = f"{scores['energy']} ({scores['options']['reference']}) of the output, which training computes"
        console.print(f"energy    {text}, {_code(scores)}", markup=False, highlight=False)
        for line in share.lines():
            console.print(f"share     {line}", markup=False, highlight=False)


def _show_scores(folder: Path, identity: dict[str, Any], part: Path) -> None:
    """Print the energy, the code and the share of the scores in the folder `part`."""
    content = score_sets.read(part)
    scores, missing = content["scores"], score_sets.missing(part, identity)
    size = sum(path.stat().st_size for path in part.glob("*.safetensors"))
    text = (
        f"{scores['energy']} ({scores['options']['reference']}) on the noisiest {scores['fraction']:.0%}, "
        f"{_code(scores)}, "
        f"{file_size(size)} in {part.name}"
    )
    if missing:
        text += f", {len(missing)} of {identity['shards']} shards missing"
    console.print(f"energy    {text}", markup=False, highlight=False)
    share = shares.shares(folder, identity, part, scores["energy"], content["strength"])
    for line in share.lines() if share else ():
        console.print(f"share     {line}", markup=False, highlight=False)


def _code(scores: dict[str, Any]) -> str:
    """The code of an energy in words."""
    return f"{scores['plugin']} {scores['version']}, source {scores['source'] or 'unknown'}"


def _bytes(folder: Path, number: int) -> int:
    try:
        return (folder / f"{shards.shard_name(number)}.safetensors").stat().st_size
    except FileNotFoundError:
        raise shards.damaged(folder, number, "it is missing") from None
