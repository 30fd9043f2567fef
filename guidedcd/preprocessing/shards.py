"""The files of a latent store: their names and forms, and errors for missing and damaged ones. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from guidedcd.config.sections import MOST_SHARDS
from guidedcd.documents import check_form, read_json
from guidedcd.errors import GuidedCDError, NoPermissionError, shortened, unreadable
from guidedcd.files import file_digest

FORMAT = 2
"""Version of the format. Stores of format 1 have the scores of their energies in the shards, and can be read."""
FORM = {
    "shards": int,
    "teacher": {"name": str, "fingerprint": str},
    "geometry": {"frames": int, "height": int, "width": int, "fps": float},
    "data": [{"name": str}],
    "energies?": {str: {"reference": str}},
    "steps": int,
    "window?": (float, None),
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
PART_FORM = {"sha256": str, "base": str}
"""Form of the JSON file of a shard's scores or inversions; `base` is the checksum of the shard's own tensors."""
SCORES, INVERSIONS = "scores", "inversions"
"""Folders in a store: one with a folder of scores for each energy, one with inverted latents."""


def shard_name(number: int) -> str:
    """The file name of a shard, without its extension."""
    return f"shard-{number:05d}"


def missing(folder: Path, identity: dict[str, Any]) -> list[int]:
    """The shards that do not exist yet."""
    return [n for n in range(identity["shards"]) if not (folder / f"{shard_name(n)}.json").exists()]


def incomplete(folder: Path, identity: dict[str, Any], absent: Sequence[int]) -> GuidedCDError:
    """The error for a store with missing shards."""
    some = ", ".join(map(str, absent[:12])) + (", ..." if len(absent) > 12 else "")
    return GuidedCDError(
        f"{folder} is unfinished: {len(absent)} of its {identity['shards']} shards are missing ({some}). Run the same "
        "`guidedcd preprocess` command again, or for a store in parts (--shard I/N) the commands of the missing parts, "
        "or copy their files there."
    )


def verify(folder: Path, advance: Callable[[], None] = lambda: None) -> None:
    """Compare every existing shard of a store with the checksum in its JSON file.

    Args:
        folder: The store, complete or not.
        advance: Called after each shard.

    Raises:
        GuidedCDError: Shards are damaged; the error names them.
    """
    wrong = []
    parts = [folder / INVERSIONS, *sorted((folder / SCORES).glob("*"))]
    for number in range(read_identity(folder)["shards"]):
        for part in (folder, *parts):
            if why := _damage(part, number, SHARD_FORM if part == folder else PART_FORM):
                wrong.append((part, number, why))
        advance()
    if wrong:
        part, number, why = wrong[0]
        raise damaged(part, number, why, others=[number for other, number, _ in wrong[1:] if other == part])


def _damage(folder: Path, number: int, form: dict[str, Any]) -> str:
    """What is wrong with the files of a shard in a folder, or "" if nothing is or the shard does not exist."""
    manifest, path = (folder / f"{shard_name(number)}.{extension}" for extension in ("json", "safetensors"))
    if not manifest.exists():
        return ""
    try:
        if not path.exists():
            return "it is missing"
        return "" if file_digest(path) == read_json(manifest, form)["sha256"] else "its checksum differs"
    except NoPermissionError:
        raise
    except GuidedCDError:
        return f"{manifest.name} cannot be read"
    except OSError as error:
        raise unreadable(error, path) from error


def read_identity(folder: Path) -> dict[str, Any]:
    """The identity of a store, from its store.json.

    Raises:
        GuidedCDError: The folder is no store, has another format, or store.json is damaged.
    """
    if not (folder / "store.json").exists():
        raise GuidedCDError(f"{folder} is no latent store: it has no store.json. `guidedcd preprocess` creates one.")
    path = folder / "store.json"
    identity = read_json(path, {"format": int})
    if identity["format"] not in (1, FORMAT):
        raise GuidedCDError(
            f"{folder} was written by another version of guidedcd (format {shortened(identity['format'], 20)}, this "
            f"one reads {FORMAT}). Delete it to compute it again."
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
    """The contents of a shard's JSON file.

    Raises:
        GuidedCDError: It is damaged.
    """
    path = folder / f"{shard_name(number)}.json"
    try:
        shard: dict[str, Any] = read_json(path, SHARD_FORM)
        keys = {key.removesuffix("?") for key in SAMPLE}
        if stray := sorted({key for sample in shard["samples"] for key in sample} - keys):
            raise GuidedCDError(f"{path}: a sample has the unknown key '{shortened(stray[0])}'.")
    except NoPermissionError:
        raise
    except GuidedCDError as error:
        raise damaged(folder, number, str(error).rstrip(".")) from error
    return shard


def damaged(folder: Path, shard: int, why: object, others: Sequence[int] = ()) -> GuidedCDError:
    """The error for a damaged shard, and for other damaged ones."""
    name = shard_name(shard)
    more, files, which = "", f"{name}.json", "this shard is"
    if others:
        more, which = f", and so are {', '.join(map(shard_name, others))}", "these shards are"
        files += " and the JSON files of the others"
    return GuidedCDError(
        f"shard {folder / name}.safetensors is damaged ({why}){more}. Delete {files} and run the same command again: "
        f"only {which} computed again."
    )
