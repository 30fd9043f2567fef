"""Writing a latent store: its description, and the files of its shards.

A shard is a safetensors file and a JSON file, which is written last; a shard without its JSON file does not exist. The
scores of an energy, and inverted latents, are in folders of their own, in files of the same names, whose JSON files
contain the checksum of the shard that they belong to. Stores of one run that were filled in different folders are
merged by copying the files of their shards, folders included, into one folder.

Legend: V videos of a shard, D draws per video, R rows: scored draws of a shard; latents (C, F, H, W).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from guidedcd.data.routing import Sample
from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError, NoPermissionError
from guidedcd.files import file_digest, replacing, write_json
from guidedcd.preprocessing import ragged
from guidedcd.preprocessing.identity import foreign, is_same
from guidedcd.preprocessing.shards import INVERSIONS, PART_FORM, SCORES, read_shard, shard_name

Inverted = dict[tuple[int, int], Tensor]
"""By (video of a shard, grid index), the latents (C, F, H, W) of its DDIM inversion."""


def begin(folder: Path, identity: dict[str, Any], run: dict[str, Any] | None = None) -> None:
    """Create the store for `identity`, or check that the store in `folder` has this identity.

    Args:
        folder: The store's folder.
        identity: See `guidedcd.preprocessing.identity.identify`.
        run: The first run of the store as JSON values, kept in run.json for `verify_store`.

    Raises:
        GuidedCDError: The folder contains a store with another identity, or other files.
    """
    path = folder / "store.json"
    if not path.exists():
        # Another process that starts the same store may have written run.json, and store.json not yet.
        names = [entry.name for entry in folder.iterdir()] if folder.exists() else []
        if any(not name.startswith(".") and name != "run.json" for name in names):
            raise GuidedCDError(f"{folder} is not empty and is no latent store. Choose another folder with --store.")
        if run is not None:
            write_json(folder / "run.json", run)
        write_json(path, identity)
        return
    try:
        present = read_json(path, {})
    except NoPermissionError:
        raise
    except GuidedCDError as error:
        raise GuidedCDError(f"{path} is damaged: delete the folder, or choose another --store.") from error
    if not is_same(present, identity):
        raise GuidedCDError(
            f"the store {folder} belongs to another run ({foreign(present, identity)}). "
            "Choose another --store, or none to let guidedcd find or make the right one."
        )


def save_shard(
    folder: Path,
    number: int,
    samples: Sequence[Sample],
    tensors: dict[str, Tensor],
    skipped: Sequence[dict[str, str]],
    scores: Mapping[str, Path | None] | None = None,
) -> None:
    """Write one computed shard: first its tensors, scores and inversions, then the JSON file, which completes it.

    Args:
        folder: The store's folder.
        number: Number of the shard.
        samples: The V clips that could be used.
        tensors: "z0" (V, C, F, H, W) float32, "index" (V, D) and "noise_seed" (V,) int64, the conditioning as
            `ragged.trimmed` returns it, "cond_output" and "uncond_output" (V, D, C, F, H, W), "moments" (V, D, 5), see
            `guidedcd.diffusion.guidance.moments`; and those that `save_parts` writes.
        skipped: "id" and "reason" of each clip that could not be used.
        scores: By energy, the folder of its scores, by default `scores/NAME`, or None for the shard's own file, as in
            a store of format 1.

    Raises:
        GuidedCDError: The disk is full.
    """
    path = folder / f"{shard_name(number)}.safetensors"
    own_scores = [name for name, part in (scores or {}).items() if part is None]
    parts = {key: v for key, v in tensors.items() if key.startswith(PARTS) and key.partition(".")[2] not in own_scores}
    own = {key: value for key, value in tensors.items() if key not in parts}
    with replacing(path) as temporary:
        save_file({key: value.contiguous().cpu() for key, value in own.items()}, temporary)
    checksum = file_digest(path)
    save_parts(folder, number, checksum, parts, scores)
    _delete_parts_of_others(folder, number, checksum)
    fields = [attrs.asdict(sample, filter=lambda attribute, _: attribute.name not in OF_RUN) for sample in samples]
    write_json(folder / f"{shard_name(number)}.json", {"samples": fields, "skipped": list(skipped), "sha256": checksum})


OF_RUN = ("readers", "energies")
"""Fields of a sample that depend on the run and not on the clip."""

PARTS = ("row.", "score.", "rms.", "inversion.")
"""Beginnings of the names of tensors outside of a shard's own file."""


def save_parts(
    folder: Path,
    number: int,
    base: str,
    tensors: Mapping[str, Tensor],
    scores: Mapping[str, Path | None] | None = None,
) -> None:
    """Write the scores and inversions of a shard, each as a file of tensors and a JSON file.

    Args:
        folder: The store's folder.
        number: Number of the shard.
        base: Checksum of the shard's own tensors.
        tensors: By energy "row.NAME" (V, D) int64, the row of a draw's score or -1, "score.NAME" (R, C, F, H, W) and
            "rms.NAME" (R,) float32, see `packed`; "inversion.index" (N, 2) int64, video and grid index, and
            "inversion.latents" (N, C, F, H, W). Others are ignored.
        scores: As in `save_shard`.

    Raises:
        GuidedCDError: The disk is full.
    """
    scores = scores or {}
    parts: dict[Path, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, name = key.partition(".")
        if kind == "inversion":
            parts.setdefault(folder / INVERSIONS, {})[name] = value
        elif key.startswith(PARTS):
            parts.setdefault(scores.get(name) or folder / SCORES / name, {})[kind] = value
    for part, values in parts.items():
        path = part / f"{shard_name(number)}.safetensors"
        with replacing(path) as temporary:
            save_file({key: value.contiguous().cpu() for key, value in values.items()}, temporary)
        write_json(path.with_suffix(".json"), {"sha256": file_digest(path), "base": base})


def _delete_parts_of_others(folder: Path, number: int, base: str) -> None:
    """Delete scores and inversions that belong to other tensors of a shard than those with the checksum `base`."""
    for manifest in (folder / SCORES).glob(f"*/{shard_name(number)}.json"):
        if _base(manifest) != base:
            manifest.unlink()
    manifest = folder / INVERSIONS / f"{shard_name(number)}.json"
    if manifest.exists() and _base(manifest) != base:
        manifest.unlink()


def _base(manifest: Path) -> str | None:
    try:
        base: str = read_json(manifest, PART_FORM)["base"]
    except NoPermissionError:
        raise
    except GuidedCDError:
        return None
    return base


def read_base(folder: Path, number: int) -> tuple[list[Sample], str, dict[str, Tensor]]:
    """The samples of a shard, its checksum, and those of its tensors that scores are computed from.

    Raises:
        GuidedCDError: The shard is damaged.
    """
    shard = read_shard(folder, number)
    with safe_open(folder / f"{shard_name(number)}.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in ("z0", "noise_seed")} | ragged.of_shard(file)
    return [Sample(**fields) for fields in shard["samples"]], shard["sha256"], tensors


def read_inversions(folder: Path, number: int, base: str) -> Inverted:
    """The inverted latents that a store keeps of a shard with the checksum `base`; none if it keeps none."""
    path = folder / INVERSIONS / f"{shard_name(number)}.safetensors"
    if not path.exists() or _base(path.with_suffix(".json")) != base:
        return {}
    tensors = load_file(path)
    keys = [(video, index) for video, index in tensors["index"].tolist()]
    return dict(zip(keys, tensors["latents"].float(), strict=True))


def packed(score: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scores (R, ...) as values of unit RMS in `dtype`, and their RMS (R,) float32: half precision would underflow."""
    rms = score.float().flatten(1).pow(2).mean(1).sqrt()
    shape = (-1,) + (1,) * (score.dim() - 1)
    return (score.float() / rms.clamp_min(1e-30).view(shape)).to(dtype), rms
