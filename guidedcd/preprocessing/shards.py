"""The files of a latent store: which there are, which are missing, and which are damaged. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from guidedcd.errors import GuidedCDError
from guidedcd.files import file_digest, read_json

FORMAT = 1


def shard_name(number: int) -> str:
    """File name of a shard, without its ending."""
    return f"shard-{number:05d}"


def missing(folder: Path, identity: dict[str, Any]) -> list[int]:
    """The shards that are not there yet."""
    return [n for n in range(identity["shards"]) if not (folder / f"{shard_name(n)}.json").exists()]


def incomplete(folder: Path, identity: dict[str, Any], absent: Sequence[int]) -> GuidedCDError:
    """The user's sentence for a store that lacks shards."""
    some = ", ".join(map(str, absent[:12])) + (", ..." if len(absent) > 12 else "")
    return GuidedCDError(
        f"{folder} is unfinished: {len(absent)} of its {identity['shards']} shards are missing ({some}). Run the same "
        "`guidedcd preprocess` command again, or where it was given in parts (--shard I/N) those that lack, or put "
        "their files there."
    )


def verify(folder: Path, advance: Callable[[], None] = lambda: None) -> None:
    """Compare every shard of a store that is there with the checksum written beside it.

    Args:
        folder: The store, finished or not.
        advance: Called after each shard.

    Raises:
        GuidedCDError: Shards are damaged; names them and says what to do.
    """
    wrong = []
    for number in range(read_identity(folder)["shards"]):
        about, path = (folder / f"{shard_name(number)}.{ending}" for ending in ("json", "safetensors"))
        if about.exists():
            try:
                if not path.exists():
                    wrong.append((number, "it is missing"))
                elif file_digest(path) != read_json(about)["sha256"]:
                    wrong.append((number, "its checksum differs"))
            except (GuidedCDError, KeyError, TypeError):
                wrong.append((number, f"{about.name} cannot be read"))
        advance()
    if wrong:
        raise damaged(folder, *wrong[0], others=[number for number, _ in wrong[1:]])


def read_identity(folder: Path) -> dict[str, Any]:
    """What a store says it is.

    Raises:
        GuidedCDError: The folder is no store, or one of another version.
    """
    if not (folder / "store.json").exists():
        raise GuidedCDError(f"{folder} is no latent store: it has no store.json. `guidedcd preprocess` makes one.")
    identity = read_json(folder / "store.json")
    found = identity.get("format") if isinstance(identity, dict) else None
    if found != FORMAT:
        raise GuidedCDError(
            f"{folder} was written by another version of guidedcd (format {found}, this one reads {FORMAT}). "
            "Remove it, and it is computed again."
        )
    return identity


def damaged(folder: Path, shard: int, why: object, others: Sequence[int] = ()) -> GuidedCDError:
    """The user's sentence for a damaged shard, and for others like it."""
    name = shard_name(shard)
    more, theirs, which = "", "", "this shard is"
    if others:
        more, theirs, which = f", and so are {', '.join(map(shard_name, others))}", " and theirs", "these shards are"
    return GuidedCDError(
        f"shard {folder / name}.safetensors is damaged ({why}){more}. Delete {name}.json{theirs} and run the same "
        f"command again: only {which} computed anew."
    )
