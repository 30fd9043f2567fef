"""Reading a latent store: clean latents, predictions and gradients of the teacher, in shards.

`guidedcd.preprocessing.shard_files` writes them.

Legend: V videos of a shard, D draws per video, R scored draws of a shard; latents (C, F, H, W).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
from safetensors import SafetensorError, safe_open
from torch import Tensor

from guidedcd.config.run import Run
from guidedcd.data.routing import Sample
from guidedcd.diffusion.randomness import noise
from guidedcd.documents import open_regular, read_json
from guidedcd.energies.traits import stored_part
from guidedcd.errors import GuidedCDError, NoPermissionError, unreadable
from guidedcd.preprocessing import ragged, score_sets
from guidedcd.preprocessing.score_sets import ScoreFolders
from guidedcd.preprocessing.shards import (
    PART_FORM,
    damaged,
    incomplete,
    missing,
    read_identity,
    read_shard,
    shard_name,
    verify,
)

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

    def __init__(self, folder: Path, scores: ScoreFolders | None = None) -> None:
        """Open a complete store.

        Args:
            folder: The store.
            scores: By energy, the folder of its scores, see `guidedcd.preprocessing.score_sets`; by default the newest
                complete ones of every energy.

        Raises:
            GuidedCDError: The folder is no store, shards are missing, or a shard is damaged.
        """
        self.folder = folder
        self.identity = read_identity(folder)
        self.shards: list[dict[str, Any]] = []
        self._open: dict[Path, Any] = {}
        if absent := missing(folder, self.identity):
            raise incomplete(folder, self.identity, absent)
        self.scores = score_sets.newest(folder, self.identity) if scores is None else dict(scores)
        """By energy, the folder of its scores, or None where they are in the shards of a store of format 1."""
        for part in self.scores.values():
            if part is not None and (absent := score_sets.missing(part, self.identity)):
                raise incomplete(part, self.identity, absent)
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
    def sizes(self) -> list[int]:
        """Numbers of draws whose latents have one size: all."""
        return [len(self)]

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
        tensors = self._tensors(self.folder, shard)
        try:
            one = {key: tensors.get_slice(key)[video : video + 1][0] for key in ("z0", "index", "noise_seed")}
            pair = {key: _row(tensors, key, video, draw) for key in ("cond_output", "uncond_output")}
            cond = {key: ragged.of_video(tensors, key, video) for key in ragged.keys(tensors.keys())}
        except SafetensorError as error:
            raise damaged(self.folder, shard, error) from error
        scores = {energy: self._score(energy, shard, video, draw) for energy in self.scores}
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
            scores={energy: score for energy, score in scores.items() if score is not None},
        )

    def verify(self) -> None:
        """Compare every shard with the checksum in its JSON file.

        Raises:
            GuidedCDError: Shards are damaged; the error names them.
        """
        verify(self.folder)

    def _score(self, energy: str, shard: int, video: int, draw: int) -> Tensor | None:
        """An energy's gradient for a draw (C, F, H, W), float32; None outside of its window."""
        folder = self.scores[energy]
        tensors, suffix = self._tensors(folder or self.folder, shard), "" if folder else f".{energy}"
        try:
            row = int(tensors.get_slice(f"row{suffix}")[video : video + 1][0][draw])
            if row < 0:
                return None
            score: Tensor = tensors.get_slice(f"score{suffix}")[row : row + 1][0].float()
            return score * tensors.get_slice(f"rms{suffix}")[row : row + 1][0]
        except SafetensorError as error:
            raise damaged(folder or self.folder, shard, error) from error

    def _check(self, shard: int) -> None:
        """Check that a shard and its scores have the tensors of its samples, by names and shapes."""
        videos, draws = len(self.shards[shard]["samples"]), self.identity["draws_per_video"]
        names = set(self._tensors(self.folder, shard).keys())
        if not videos:
            return
        shapes = {"z0": [videos], "noise_seed": [videos]}
        shapes |= {name: [videos, draws] for name in ("index", "cond_output", "uncond_output")}
        shapes |= {name: [videos] for name in names if name.startswith(ragged.PREFIX)}
        for key in ragged.keys(names):
            if ragged.PREFIX + key not in names:
                shapes |= {ragged.ROWS + key: [], ragged.STARTS + key: [videos + 1], ragged.LENGTH + key: [1]}
        parts: dict[Path, dict[str, list[int]]] = {}
        for energy, folder in self.scores.items():
            suffix = "" if folder else f".{energy}"
            of_scores: dict[str, list[int]] = {
                f"row{suffix}": [videos, draws],
                f"score{suffix}": [],
                f"rms{suffix}": [],
            }
            if folder is None:
                shapes |= of_scores
            else:
                parts[folder] = of_scores
        self._check_shapes(self.folder, shard, shapes)
        for folder, of_scores in parts.items():
            self._check_base(folder, shard)
            self._check_shapes(folder, shard, of_scores)

    def _check_base(self, folder: Path, shard: int) -> None:
        """Check that the scores of a shard in `folder` were computed from its present tensors."""
        path = folder / f"{shard_name(shard)}.json"
        try:
            base = read_json(path, PART_FORM)["base"]
        except NoPermissionError:
            raise
        except GuidedCDError as error:
            raise damaged(folder, shard, str(error).rstrip(".")) from error
        if base != self.shards[shard]["sha256"]:
            raise damaged(folder, shard, "it belongs to other predictions")

    def _check_shapes(self, folder: Path, shard: int, shapes: dict[str, list[int]]) -> None:
        """Check that the file of a shard in `folder` has tensors whose shapes begin so."""
        tensors, videos = self._tensors(folder, shard), len(self.shards[shard]["samples"])
        names = set(tensors.keys())
        for name, shape in shapes.items():
            if name not in names:
                raise damaged(folder, shard, f"it has no {name}")
            actual = tensors.get_slice(name).get_shape()
            if actual[: len(shape)] != shape:
                draws = self.identity["draws_per_video"]
                raise damaged(folder, shard, f"{name} has shape {actual} for {videos} videos of {draws} draws")

    def _tensors(self, folder: Path, shard: int) -> Any:
        path = folder / f"{shard_name(shard)}.safetensors"
        if path not in self._open:
            if len(self._open) >= OPEN_FILES:
                self._open.pop(next(iter(self._open)))
            try:
                with open_regular(path):  # safetensors reports missing permissions like damage
                    self._open[path] = safe_open(path, framework="pt")
            except PermissionError as error:
                raise unreadable(error, path) from error
            except (SafetensorError, OSError) as error:
                raise damaged(folder, shard, error) from error
        return self._open[path]


def _row(tensors: Any, key: str, video: int, draw: int) -> Tensor:
    return tensors.get_slice(key)[video : video + 1, draw : draw + 1][0, 0]


def open_store(run: Run, folder: Path) -> LatentStore:
    """The complete store in `folder`, with the scores of a run's energies; those of the output have none.

    Raises:
        GuidedCDError: As `LatentStore`.
    """
    return LatentStore(folder, score_sets.folders(folder, stored_part(run), read_identity(folder)))
