"""Prints a latent store: its teacher, data, energies and size. No torch."""

from __future__ import annotations

from pathlib import Path

from guidedcd.console import console, file_size
from guidedcd.preprocessing import shards

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
    window = "" if identity["window"] is None else f", scores on the noisiest {identity['window']:.0%}"
    lines = {
        "teacher": f"{identity['teacher']['name']} {identity['teacher']['fingerprint'][:12]}, "
        f"{shape['frames']} frames of {shape['width']}x{shape['height']} at {shape['fps']:g} fps",
        "data": ", ".join(dataset["name"] for dataset in identity["data"]),
        "energies": ", ".join(f"{n} ({c['reference']})" for n, c in identity["energies"].items()) or "none",
        "grid": f"{identity['steps']} steps{window}",
        "videos": f"{used} of {identity['videos']}" + (f", {skipped} skipped" if skipped else ""),
        "draws": f"{used * identity['draws_per_video']}, {identity['draws_per_video']} of each video",
        "stored as": f"{identity['dtype']}, {file_size(size)}",
        "shards": f"{len(present)} of {identity['shards']} shards" + ("" if missing else ", complete"),
    }
    if missing:
        lines["missing"] = ", ".join(map(str, missing[:LISTED])) + (", ..." if len(missing) > LISTED else "")
    for name, text in lines.items():
        console.print(f"{name:9} {text}", markup=False, highlight=False)


def _bytes(folder: Path, number: int) -> int:
    try:
        return (folder / f"{shards.shard_name(number)}.safetensors").stat().st_size
    except FileNotFoundError:
        raise shards.damaged(folder, number, "it is missing") from None
