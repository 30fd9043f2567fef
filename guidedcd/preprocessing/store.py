"""The latent store: everything that depends on the frozen teacher, computed once and keyed by what it depends on.

Legend: V videos of a shard, D draws per video, R scored draws of a shard; latents (C, F, H, W).
A shard is one safetensors file and, written after it, one JSON file; a shard without its JSON does not exist. Stores of
one run that were filled in different folders are merged by putting their shards into one.
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
"""At most so many shards are held open: systems limit files to a thousand or so."""


@attrs.frozen(kw_only=True, eq=False)
class Draw:
    """One training sample: a noise draw of one video, with what the teacher said about it."""

    sample: Sample
    number: int
    """Which of the video's draws, from 0."""
    index: int
    """Solver index n of the source point, 0 is the cleanest."""
    z0: Tensor
    """Clean latents (C, F, H, W), float32."""
    noise: Tensor
    """Standard normal noise like z0, float32, recomputed from its seed."""
    cond: dict[str, Tensor]
    """Text condition of the caption, without a batch dimension."""
    cond_output: Tensor
    """The teacher's prediction with the caption, like z0."""
    uncond_output: Tensor
    """The teacher's prediction without a caption, like z0."""
    scores: dict[str, Tensor]
    """By energy, the gradient of the energy at z_t, like z0; absent outside of the scored window."""

    @property
    def id(self) -> str:
        """Names the draw in logs and errors: "sample id#draw"."""
        return f"{self.sample.id}#{self.number}"


class LatentStore:
    """A folder of shards, read lazily; the same draw is the same tensors on every machine."""

    def __init__(self, folder: Path) -> None:
        """Open a finished store.

        Raises:
            GuidedCDError: The folder is no store, is unfinished, or a shard is damaged.
        """
        self.folder = folder
        self.identity = read_identity(folder)
        self.shards: list[dict[str, Any]] = []
        self._open: dict[int, Any] = {}
        if absent := missing(folder, self.identity):
            raise incomplete(folder, self.identity, absent)
        for number in range(self.identity["shards"]):
            self.shards.append(read_shard(folder, number))
            self._check(number)  # a damaged shard is better found now than in the middle of the training
        self.draws = [
            (shard, video, draw)
            for shard, about in enumerate(self.shards)
            for video in range(len(about["samples"]))
            for draw in range(self.identity["draws_per_video"])
        ]

    def __len__(self) -> int:
        """Number of draws."""
        return len(self.draws)

    @property
    def samples(self) -> list[dict[str, Any]]:
        """What is known of every stored clip."""
        return [sample for about in self.shards for sample in about["samples"]]

    @property
    def skipped(self) -> list[dict[str, str]]:
        """Clips that could not be used, with the reason."""
        return [entry for about in self.shards for entry in about["skipped"]]

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
                    part = tensors.get_slice(f"score.{energy}")[row : row + 1][0].float()
                    scores[energy] = part * tensors.get_slice(f"rms.{energy}")[row : row + 1][0]
        except SafetensorError as error:
            raise damaged(self.folder, shard, error) from error
        z0 = one["z0"].float()
        about = self.shards[shard]["samples"][video]
        return Draw(
            sample=Sample(**about),
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
        """Compare every shard with the checksum written beside it.

        Raises:
            GuidedCDError: Shards are damaged; names them and says what to do.
        """
        verify(self.folder)

    def _check(self, shard: int) -> None:
        """Refuse a shard whose tensors are not those of its samples."""
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
                with open_regular(path):  # tells a matter of permissions from damage
                    self._open[shard] = safe_open(path, framework="pt")
            except PermissionError as error:
                raise unreadable(error, path) from error
            except (SafetensorError, OSError) as error:
                raise damaged(self.folder, shard, error) from error
        return self._open[shard]


def _row(tensors: Any, key: str, video: int, draw: int) -> Tensor:
    return tensors.get_slice(key)[video : video + 1, draw : draw + 1][0, 0]


def begin(folder: Path, identity: dict[str, Any], run: dict[str, Any] | None = None) -> None:
    """Create the store for `identity`, or check that the one in `folder` is its.

    Args:
        folder: Where.
        identity: What the store depends on.
        run: The run that asks for it first, as JSON values; kept in run.json, so that a check can ask the teacher.

    Raises:
        GuidedCDError: The folder holds a store of another teacher, data set, grid or energies, or something else.
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
        found = read_json(path, {})
    except NoPermissionError:
        raise
    except GuidedCDError as error:
        raise GuidedCDError(f"{path} is damaged: delete the folder, or choose another --store.") from error
    if digest(found) != digest(identity):
        raise GuidedCDError(
            f"the store {folder} belongs to another run ({difference(found, identity)}). "
            "Choose another --store, or none to let guidedcd find or make the right one."
        )


def save_shard(
    folder: Path,
    number: int,
    samples: Sequence[Sample],
    tensors: dict[str, Tensor],
    skipped: Sequence[dict[str, str]],
) -> None:
    """Write one finished shard: tensors first, then the JSON that makes it count."""
    path = folder / f"{shard_name(number)}.safetensors"
    with replacing(path) as part:
        save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, part)
    about = [attrs.asdict(s, filter=lambda a, _: a.name != "readers") for s in samples]
    write_json(
        folder / f"{shard_name(number)}.json",
        {"samples": about, "skipped": list(skipped), "sha256": file_digest(path)},
    )


def packed(score: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A score as unit-RMS values in `dtype` and its RMS (float32): gradients underflow half precision otherwise."""
    rms = score.float().flatten(1).pow(2).mean(1).sqrt()
    shape = (-1,) + (1,) * (score.dim() - 1)
    return (score.float() / rms.clamp_min(1e-30).view(shape)).to(dtype), rms
