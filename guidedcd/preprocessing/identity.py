"""The identity of a latent store, and of the scores of each energy in it: all that their contents depend on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from guidedcd.config.kinds import Chosen
from guidedcd.config.run import Run
from guidedcd.config.sections import Preprocess
from guidedcd.config.structure import unstructure
from guidedcd.errors import GuidedCDError
from guidedcd.files import difference, digest
from guidedcd.plugins.configs import EnergyConfig
from guidedcd.plugins.sources import origin
from guidedcd.preprocessing.shards import FORMAT

if TYPE_CHECKING:
    from guidedcd.models.teachers.protocol import Teacher

OPTIONAL = ("buckets", "quantize")
"""Keys of the identity that only a store with these options has."""
FINGERPRINT = "fingerprint"
"""Key of a dataset's own fingerprint in the identity of a store."""


def identify(run: Run, teacher: Teacher) -> dict[str, Any]:
    """The identity of the run's store, as JSON values: latents, predictions and inversions depend on it.

    Energies have identities of their own. Scales, fractions, omega, rewards and routes act in training.
    """
    return {
        "format": FORMAT,
        "teacher": {"name": run.teacher.name, "fingerprint": teacher.fingerprint()},
        "geometry": attrs.asdict(teacher.geometry),
        "data": [{"name": chosen.name} | unstructure(chosen.config) | _fingerprint(chosen) for chosen in run.data],
        **_settings(run),
    }


def may_use(run: Run, stored: dict[str, Any]) -> bool:
    """Whether a store may be that of a run: everything but the files of the teacher and of the data is compared."""
    data = [
        {key: value for key, value in entry.items() if key != FINGERPRINT}
        for entry in stored["data"]
        if isinstance(entry, dict)
    ]
    expected = {"data": [{"name": chosen.name} | unstructure(chosen.config) for chosen in run.data], **_settings(run)}
    same = {key: stored[key] for key in {*expected, *OPTIONAL} & stored.keys()} | {"data": data}
    return stored["teacher"]["name"] == run.teacher.name and digest(same) == digest(expected)


def _settings(run: Run) -> dict[str, Any]:
    """The part of a store's identity that follows from the options of the run alone."""
    settings: Preprocess = run.preprocess
    return {
        "steps": run.solver.steps,
        "videos": settings.videos,
        "draws_per_video": settings.draws_per_video,
        "noise_range": list(settings.noise_range),
        "shards": -(-settings.videos // settings.shard_size),
        "shard_size": settings.shard_size,
        "batch_size": settings.batch_size,
        "dtype": settings.dtype,
        "precision": settings.precision,
        "seed": run.seed,
        **({"buckets": list(settings.buckets)} if settings.buckets else {}),
        **({"quantize": settings.quantize} if settings.quantize != "no" else {}),
    }


def identify_scores(run: Run, name: str) -> dict[str, Any]:
    """The identity of an energy's scores in the run's store, as JSON values: its options, its code, the guided part."""
    engine = {a.name for a in attrs.fields(EnergyConfig)} - {"reference"}
    options = {key: value for key, value in unstructure(run.energies[name]).items() if key not in engine}
    code = origin(run.component("energy", name))
    return {"energy": name, "options": options, "fraction": run.preprocess.fraction} | code


def _fingerprint(chosen: Chosen) -> dict[str, str | None]:
    """The fingerprint of a dataset that offers one: None if its files are gone, as they may be once it is stored."""
    try:
        fingerprint = getattr(chosen.build(), "fingerprint", None)
        return {} if fingerprint is None else {FINGERPRINT: str(fingerprint())}
    except (GuidedCDError, OSError):
        return {FINGERPRINT: None}


def is_same(stored: dict[str, Any], identity: dict[str, Any]) -> bool:
    """Whether a store has the identity of a run, as far as both are known."""
    return digest(_comparable(stored, identity)) == digest(_comparable(identity, stored))


def foreign(stored: dict[str, Any], identity: dict[str, Any]) -> str:
    """How the identity of a store differs from that of a run."""
    one, other = _comparable(stored, identity), _comparable(identity, stored)
    for first, second in zip(one.get("data") or (), other["data"], strict=False):
        others = [{**entry, FINGERPRINT: ""} for entry in (first, second) if isinstance(entry, dict)]
        if len(others) == 2 and digest(others[0]) == digest(others[1]) and digest(first) != digest(second):
            return f"the files of dataset '{first.get('name')}' have changed since"
    return difference(one, other)


def _comparable(identity: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """An identity without what the other one lacks: stores of format 1 contain scores, and no fingerprints of data."""
    comparable = {key: value for key, value in identity.items() if key not in ("format", "energies", "window")}
    data, others = identity.get("data"), other.get("data")
    if isinstance(data, list) and isinstance(others, list) and len(data) == len(others):
        comparable["data"] = [_without_unknown(one, two) for one, two in zip(data, others, strict=True)]
    return comparable


def _without_unknown(one: Any, other: Any) -> Any:
    """A dataset's identity, without its fingerprint where one of two is unknown."""
    if isinstance(one, dict) and isinstance(other, dict) and None in (one.get(FINGERPRINT), other.get(FINGERPRINT)):
        return {key: value for key, value in one.items() if key != FINGERPRINT}
    return one
