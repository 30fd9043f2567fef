"""Reading and writing a latent store: clean latents, predictions and gradients of the teacher, in shards.

A shard is one safetensors file and one JSON file, which is written afterwards; a shard without its JSON file does not
exist. Stores of one run that were filled in different folders are merged by copying their shards into one folder.

Legend: V videos of a shard, D draws per video, R scored draws of a shard; latents (C, F, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from guidedcd.data.routing import Sample
from guidedcd.diffusion.randomness import noise
from guidedcd.documents import open_regular, read_json
from guidedcd.errors import GuidedCDError, NoPermissionError, unreadable
from guidedcd.files import difference, digest, file_digest, replacing, write_json
from guidedcd.preprocessing.shards import (
    FORMAT,
    damaged,
    incomplete,
    missing,
    read_identity,
    read_shard,
    shard_name,
    verify,
)

__all__ = ["FORMAT", "Draw", "LatentStore", "begin", "packed", "save_shard", "shard_name"]

OPEN_FILES = 256
"""The most shards that are open at once: systems limit a process to about a thousand files."""


@attrs.frozen(kw_only=True, eq=False)
class Draw:
    """One training sample: a noise draw of one video, with the teacher's predictions."""

    sample: Sample
    number: int
    """Number of the draw among those of its video, from 0."""
    index: int
    """Index n of the source point on the solver's grid; 0 is the cleanest."""
    z0: Tensor
    """Clean latents (C, F, H, W), float32."""
    noise: Tensor
    """Standard normal noise like z0, float32, computed from its seed."""
    cond: dict[str, Tensor]
    """Conditioning of the caption, without a batch dimension."""
    cond_output: Tensor
    """The teacher's prediction with the caption, like z0."""
    uncond_output: Tensor
    """The teacher's prediction without a caption, like z0."""
    scores: dict[str, Tensor]
    """By energy, its gradient at z_t like z0; absent outside of the window in which energies act."""

    @property
    def id(self) -> str:
        """Names the draw in logs and errors: "sample id#draw"."""
        return f"{self.sample.id}#{self.number}"


class LatentStore:
    """A sequence of draws, read lazily from a folder of shards; a draw is the same on every machine."""

    def __init__(self, folder: Path) -> None:
        """Open a complete store.

        Raises:
            GuidedCDError: The folder is no store, shards are missing, or a shard is damaged.
        """
        self.folder = folder
        self.identity = read_identity(folder)
        self.shards: list[dict[str, Any]] = []
        self._open: dict[int, Any] = {}
        if absent := missing(folder, self.identity):
            raise incomplete(folder, self.identity, absent)
        for number in range(self.identity["shards"]):
            self.shards.append(read_shard(folder, number))
            self._check(number)  # rather now than in the middle of the training
        self.draws = [
            (number, video, draw)
            for number, shard in enumerate(self.shards)
            for video in range(len(shard["samples"]))
            for draw in range(self.identity["draws_per_video"])
        ]

    def __len__(self) -> int:
        """Number of draws."""
        return len(self.draws)

    @property
    def samples(self) -> list[dict[str, Any]]:
        """The fields of the `Sample` of every stored clip."""
        return [sample for shard in self.shards for sample in shard["samples"]]

    @property
    def skipped(self) -> list[dict[str, str]]:
        """Clips that could not be used, with the reason."""
        return [entry for shard in self.shards for entry in shard["skipped"]]

    def __getitem__(self, position: int) -> Draw:
        """The draw at `position`.

        Raises:
            GuidedCDError: The shard is damaged.
        """
        shard, video, draw = self.draws[position]
        tensors = self._tensors(shard)
        try:
            one = {key: tensors.get_slice(key)[video : video + 1][0] for key in ("z0", "index", "noise_seed")}
            pair = {key: _row(tensors, key, video, draw) for key in ("cond_output", "uncond_output")}
            cond = {
                key.removeprefix("cond."): tensors.get_slice(key)[video : video + 1][0]
                for key in tensors.keys()  # noqa: SIM118 - not a mapping
                if key.startswith("cond.")
            }
            scores = {}
            for energy in self.identity["energies"]:
                row = int(tensors.get_slice(f"row.{energy}")[video : video + 1][0][draw])
                if row >= 0:
                    score = tensors.get_slice(f"score.{energy}")[row : row + 1][0].float()
                    scores[energy] = score * tensors.get_slice(f"rms.{energy}")[row : row + 1][0]
        except SafetensorError as error:
            raise damaged(self.folder, shard, error) from error
        z0 = one["z0"].float()
        return Draw(
            sample=Sample(**self.shards[shard]["samples"][video]),
            number=draw,
            index=int(one["index"][draw]),
            z0=z0,
            noise=noise(int(one["noise_seed"]), draw, z0.shape),
            cond=cond,
            cond_output=pair["cond_output"].float(),
            uncond_output=pair["uncond_output"].float(),
            scores=scores,
        )

    def verify(self) -> None:
        """Compare every shard with the checksum in its JSON file.

        Raises:
            GuidedCDError: Shards are damaged; the error names them.
        """
        verify(self.folder)

    def _check(self, shard: int) -> None:
        """Check that a shard has the tensors of its samples, by names and shapes."""
        tensors, videos = self._tensors(shard), len(self.shards[shard]["samples"])
        if not videos:
            return
        draws, names = self.identity["draws_per_video"], set(tensors.keys())
        shapes = {"z0": [videos], "noise_seed": [videos]}
        shapes |= {name: [videos, draws] for name in ("index", "cond_output", "uncond_output")}
        shapes |= {name: [videos] for name in names if name.startswith("cond.")}
        for energy in self.identity["energies"]:
            shapes |= {f"row.{energy}": [videos, draws], f"score.{energy}": [], f"rms.{energy}": []}
        for name, shape in shapes.items():
            if name not in names:
                raise damaged(self.folder, shard, f"it has no {name}")
            actual = tensors.get_slice(name).get_shape()
            if actual[: len(shape)] != shape:
                raise damaged(self.folder, shard, f"{name} has shape {actual} for {videos} videos of {draws} draws")

    def _tensors(self, shard: int) -> Any:
        if shard not in self._open:
            if len(self._open) >= OPEN_FILES:
                self._open.pop(next(iter(self._open)))
            path = self.folder / f"{shard_name(shard)}.safetensors"
            try:
                with open_regular(path):  # safetensors reports missing permissions like damage
                    self._open[shard] = safe_open(path, framework="pt")
            except PermissionError as error:
                raise unreadable(error, path) from error
            except (SafetensorError, OSError) as error:
                raise damaged(self.folder, shard, error) from error
        return self._open[shard]


def _row(tensors: Any, key: str, video: int, draw: int) -> Tensor:
    return tensors.get_slice(key)[video : video + 1, draw : draw + 1][0, 0]


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
        if folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
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
    if digest(present) != digest(identity):
        raise GuidedCDError(
            f"the store {folder} belongs to another run ({difference(present, identity)}). "
            "Choose another --store, or none to let guidedcd find or make the right one."
        )


def save_shard(
    folder: Path,
    number: int,
    samples: Sequence[Sample],
    tensors: dict[str, Tensor],
    skipped: Sequence[dict[str, str]],
) -> None:
    """Write one computed shard: first the tensors, then the JSON file, which completes it.

    Args:
        folder: The store's folder.
        number: Number of the shard.
        samples: The V clips that could be used.
        tensors: "z0" (V, C, F, H, W) float32, "index" (V, D) and "noise_seed" (V,) int64, "cond.KEY" (V, ...),
            "cond_output" and "uncond_output" (V, D, C, F, H, W); by energy "row.NAME" (V, D) int64, the row of a draw's
            score or -1, "score.NAME" (R, C, F, H, W) and "rms.NAME" (R,) float32, see `packed`.
        skipped: "id" and "reason" of each clip that could not be used.

    Raises:
        GuidedCDError: The disk is full.
    """
    path = folder / f"{shard_name(number)}.safetensors"
    with replacing(path) as temporary:
        save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, temporary)
    fields = [attrs.asdict(sample, filter=lambda attribute, _: attribute.name != "readers") for sample in samples]
    write_json(
        folder / f"{shard_name(number)}.json",
        {"samples": fields, "skipped": list(skipped), "sha256": file_digest(path)},
    )


def packed(score: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scores (R, ...) as values of unit RMS in `dtype`, and their RMS (R,) float32: half precision would underflow."""
    rms = score.float().flatten(1).pow(2).mean(1).sqrt()
    shape = (-1,) + (1,) * (score.dim() - 1)
    return (score.float() / rms.clamp_min(1e-30).view(shape)).to(dtype), rms
