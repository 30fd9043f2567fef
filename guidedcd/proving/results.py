"""Results: one file for each arm and seed, with the values of every prompt. No torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError
from guidedcd.files import path_name, write_json
from guidedcd.proving.proof import ProofMetric
from guidedcd.training.alarms import average

FOLDER = "results"
FORM = {
    "arm": str,
    "seed": int,
    "settings": {str: Any},
    "values": {str: {str: [(float, None)]}},
    "seconds": float,
    "machine": str,
    "versions": {str: str},
    "date": str,
}
"""Form of a result's file."""
Results = dict[str, dict[int, dict[str, Any]]]
"""By arm and seed, the content of a result's file."""


def file_of(out: Path, arm: str, seed: int) -> Path:
    """The file of one result."""
    return out / FOLDER / f"{path_name(arm)}-{seed}.json"


def write(out: Path, result: Mapping[str, Any]) -> None:
    """Write a result as a whole; values that do not apply become null."""
    values = {
        split: {key: [None if math.isnan(v) else round(v, 5) for v in numbers] for key, numbers in by_key.items()}
        for split, by_key in result["values"].items()
    }
    path = file_of(out, result["arm"], result["seed"])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**result, "values": values})


def read_all(out: Path) -> Results:
    """All results in a folder.

    Raises:
        GuidedCDError: A file is damaged.
    """
    results: Results = {}
    for path in sorted((out / FOLDER).glob("*.json")):
        result = read_json(path, FORM)
        results.setdefault(result["arm"], {})[result["seed"]] = result
    return results


def check_same(
    results: Results, arms: Iterable[str], seed_settings: Mapping[tuple[str, int], Mapping[str, Any]]
) -> None:
    """Refuse results of other settings than those of this call.

    Args:
        results: The results in the folder.
        arms: Names of the arms of this call.
        seed_settings: By arm and seed, the settings of this call.

    Raises:
        GuidedCDError: A result has other settings; names it.
    """
    for arm in arms:
        for seed, result in results.get(arm, {}).items():
            settings = seed_settings.get((arm, seed))
            if settings is not None and result["settings"] != settings:
                key = next(k for k in {*settings, *result["settings"]} if settings.get(k) != result["settings"].get(k))
                raise GuidedCDError(
                    f"the result of arm '{arm}', seed {seed} is of other settings ({key} differs): choose another "
                    f"--out, or remove {FOLDER}/{path_name(arm)}-{seed}.json."
                )


def value_of(result: Mapping[str, Any], metric: ProofMetric) -> float:
    """The number of a metric: the mean over its keys of the mean over the prompts of its splits."""
    by_key = []
    for key in metric.keys:
        pooled: list[float | None] = []
        for split in metric.splits:
            pooled += result["values"].get(split, {}).get(key, [])
        by_key.append(average(value for value in pooled if value is not None))
    return statistics.fmean(by_key) if by_key else math.nan
