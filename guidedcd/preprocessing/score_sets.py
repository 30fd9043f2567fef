"""The scores of a store's energies: one folder for each energy with its options and its code. No torch.

A store in `STORE/` contains the scores of an energy in `STORE/scores/NAME-KEY/`, where KEY is a digest of the scores'
identity. Another energy, or an edited one, has a folder of its own, so that nothing else is computed again. Stores of
format 1 contain the scores in their shards, without the source of the energy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guidedcd.config.run import Run
from guidedcd.documents import read_json
from guidedcd.files import digest, path_name, write_json
from guidedcd.plugins.sources import changed
from guidedcd.preprocessing import shards
from guidedcd.preprocessing.identity import identify_scores
from guidedcd.preprocessing.shards import SCORES

CODE = ("plugin", "version", "source")
"""Keys of an identity that describe the energy's code."""
FORM = {
    "scores": {
        "energy": str,
        "options": {"reference": str},
        "fraction": float,
        "plugin": str,
        "version": str,
        "source": str,
    },
    "strength": {
        "strength": float,
        "is_relative": bool,
        "fraction": float,
        "omega": float,
        "rule": str,
        "noise_factor": str,
    },
}
"""Form of scores.json."""

ScoreFolders = Mapping[str, Path | None]
"""By energy, the folder of its scores, or None where they are in the shards of a store of format 1."""


def folder_of(store: Path, scores: Mapping[str, Any]) -> Path:
    """The folder of the scores with this identity."""
    return store / SCORES / f"{path_name(scores['energy'])}-{digest(dict(scores))}"


def folders(store: Path, run: Run, identity: Mapping[str, Any]) -> dict[str, Path | None]:
    """Where the scores of a run's energies are, or would be.

    Args:
        store: The folder of the store.
        run: The run.
        identity: The content of store.json.
    """
    folders: dict[str, Path | None] = {}
    for name in run.energies:
        scores = identify_scores(run, name)
        folder = folder_of(store, scores)
        folders[name] = None if in_shards(identity, scores) and not folder.exists() else folder
    return folders


def in_shards(identity: Mapping[str, Any], scores: Mapping[str, Any]) -> bool:
    """Whether a store of format 1 has these scores, apart from the energy's code, which it does not state."""
    options = identity.get("energies", {}).get(scores["energy"])
    return options is not None and options == scores["options"] and identity.get("window") == scores["fraction"]


def begin(folder: Path, scores: Mapping[str, Any], strength: Mapping[str, Any]) -> None:
    """Create the folder of the scores with this identity; `strength` is that of its first run, for `store show`."""
    if not (folder / "scores.json").exists():
        write_json(folder / "scores.json", {"scores": dict(scores), "strength": dict(strength)})


def begin_all(folders: ScoreFolders, run: Run) -> None:
    """Create the folders of a run's scores."""
    for name, folder in folders.items():
        if folder is not None:
            begin(folder, identify_scores(run, name), strength_of(run, name))


def strength_of(run: Run, name: str) -> dict[str, Any]:
    """What the share of an energy's guided term in the prediction depends on, besides the store, as JSON values."""
    config, low_high = run.energies[name], run.energies[name].scale_range
    return {
        "strength": config.strength if low_high is None else sum(low_high) / 2,
        "is_relative": config.is_relative,
        "fraction": config.fraction,
        "omega": sum(run.solver.omega) / 2,
        "rule": run.solver.rule,
        "noise_factor": run.solver.noise_factor,
    }


def count(folders: ScoreFolders, numbers: Sequence[int]) -> int:
    """How many files of scores the shards `numbers` lack."""
    return sum(len(without(folders, number)) for number in numbers)


def read(folder: Path) -> dict[str, Any]:
    """The content of scores.json: "scores", the identity, and "strength".

    Raises:
        GuidedCDError: It is missing or damaged.
    """
    content: dict[str, Any] = read_json(folder / "scores.json", FORM)
    return content


def listed(store: Path) -> list[Path]:
    """The folders of all scores in a store, oldest first."""
    paths = [path.parent for path in (store / SCORES).glob("*/scores.json")]
    return sorted(paths, key=lambda path: ((path / "scores.json").stat().st_mtime_ns, path.name))


def newest(store: Path, identity: Mapping[str, Any]) -> dict[str, Path | None]:
    """By energy, the newest of its complete scores in a store."""
    newest_of: dict[str, Path | None] = dict.fromkeys(identity.get("energies", {}))
    for folder in listed(store):
        if not missing(folder, identity):
            newest_of[read(folder)["scores"]["energy"]] = folder
    return newest_of


def missing(folder: Path, identity: Mapping[str, Any]) -> list[int]:
    """The shards that have no scores in `folder` yet."""
    return [n for n in range(identity["shards"]) if not (folder / f"{shards.shard_name(n)}.json").exists()]


def without(folders: ScoreFolders, number: int) -> list[str]:
    """The energies without scores of a shard."""
    name = f"{shards.shard_name(number)}.json"
    return [energy for energy, folder in folders.items() if folder is not None and not (folder / name).exists()]


def notes(store: Path, run: Run, folders: ScoreFolders) -> list[str]:
    """One sentence for each energy whose code has changed since it was last scored here, or is unknown."""
    sentences = []
    for name, folder in folders.items():
        if folder is None:
            sentences.append(
                f"the scores of '{name}' were computed before sources were recorded, so that a change of its code "
                f"is unknown; `guidedcd store verify {store}` compares some of them"
            )
        elif not folder.exists():
            scores = identify_scores(run, name)
            earlier = [other for path in listed(store) if _differs_in_code(other := read(path)["scores"], scores)]
            if earlier:
                change = changed(f"energy '{name}'", earlier[-1], scores)
                sentences.append(f"{change}: its scores are computed again, predictions and inversions are kept")
    return sentences


def _differs_in_code(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two identities are of the same energy, with the same options, in different versions."""
    same = all(one[key] == other[key] for key in ("energy", "options", "fraction"))
    return same and any(one[key] != other[key] for key in CODE)
