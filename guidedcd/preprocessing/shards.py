"""The files of a latent store: which there are, which are missing, and which are damaged. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from guidedcd.documents import check_form, read_json
from guidedcd.errors import GuidedCDError, NoPermissionError, shortened, unreadable
from guidedcd.files import file_digest

FORMAT = 1
FORM = {
    "shards": int,
    "teacher": {"name": str, "fingerprint": str},
    "geometry": {"frames": int, "height": int, "width": int, "fps": float},
    "data": [{"name": str}],
    "energies": {str: {"reference": str}},
    "steps": int,
    "window": (float, None),
    "videos": int,
    "draws_per_video": int,
    "shard_size": int,
    "dtype": str,
}
"""Form of store.json; see `guidedcd.documents`."""
SAMPLE = {
    "id": str,
    "dataset": str,
    "caption": str,
    "short_caption?": (str, None),
    "tags?": {str: Any},
    "motion?": (float, None),
}
SHARD_FORM = {"samples": [SAMPLE], "skipped": [{"id": str, "reason": str}], "sha256": str}
"""Form of the JSON file of a shard."""
MOST_SHARDS = 10**6


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
                elif file_digest(path) != read_json(about, SHARD_FORM)["sha256"]:
                    wrong.append((number, "its checksum differs"))
            except NoPermissionError:
                raise
            except GuidedCDError:
                wrong.append((number, f"{about.name} cannot be read"))
            except OSError as error:
                raise unreadable(error, path) from error
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
    path = folder / "store.json"
    identity = read_json(path, {"format": int})
    if identity["format"] != FORMAT:
        raise GuidedCDError(
            f"{folder} was written by another version of guidedcd (format {shortened(identity['format'], 20)}, this "
            f"one reads {FORMAT}). Remove it, and it is computed again."
        )
    check_form(identity, FORM, path)
    videos, size, shards = (identity[name] for name in ("videos", "shard_size", "shards"))
    if min(videos, size, identity["draws_per_video"]) < 1 or shards != -(-videos // size) or shards > MOST_SHARDS:
        raise GuidedCDError(
            f"{path} is damaged: {shortened(shards, 20)} shards of {shortened(size, 20)} videos cannot hold "
            f"{shortened(videos, 20)} videos."
        )
    return identity


def read_shard(folder: Path, number: int) -> dict[str, Any]:
    """What the JSON file of a shard contains.

    Raises:
        GuidedCDError: It is damaged; says how to compute the shard again.
    """
    path = folder / f"{shard_name(number)}.json"
    try:
        about = read_json(path, SHARD_FORM)
        known = {key.removesuffix("?") for key in SAMPLE}
        if stray := sorted({key for sample in about["samples"] for key in sample} - known):
            raise GuidedCDError(f"{path}: a sample has the unknown key '{shortened(stray[0])}'.")
    except NoPermissionError:
        raise
    except GuidedCDError as error:
        raise damaged(folder, number, str(error).rstrip(".")) from error
    return about


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
