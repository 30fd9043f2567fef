"""Proofs: arms, metrics and claims from a TOML file, which a teacher's plugin ships or the user names. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import attrs

from guidedcd.config.resolve import resolve
from guidedcd.config.run import Run
from guidedcd.config.sources import ALIASES, Layer, read_profile
from guidedcd.documents import check_form, read_toml
from guidedcd.errors import GuidedCDError, suggest
from guidedcd.plugins.registry import Registry
from guidedcd.proving.criteria import Criterion, parse

FORM: dict[str, Any] = {
    "title": str,
    "profile": str,
    "seeds": [int],
    "steps": int,
    "prompts": {str: int},
    "options": {str: Any},
    "groups?": {str: {str: Any}},
    "quick?": {
        "arms": [str],
        "prompts?": {str: int},
        "options?": {str: Any},
    },
    "author?": {"against": [str]},
    "arms": {
        str: {
            "about": str,
            "groups?": [str],
            "options?": {str: Any},
            "student?": str,
            "teacher?": {"steps": int, "omega": float},
            "steps?": int,
        }
    },
    "metrics": {str: {"about": str, "keys": [str], "splits?": [str]}},
    "claims": [{"id": str, "claim": str, "criteria": [str], "source?": str, "paper?": str, "paper-holds?": bool}],
    "without-meaning?": [{"ids": [str], "reason": str}],
}
"""Form of a proof's file; see `guidedcd.documents`."""


@attrs.frozen(kw_only=True)
class ProofArm:
    """One arm: a student that is trained, another way of sampling such a student, or the teacher."""

    name: str
    about: str
    options: Mapping[str, Any] = attrs.field(factory=dict)
    """Of the run, in the form of a `--config` file, without those of every arm."""
    student: str | None = None
    """The arm whose student is sampled; None for its own."""
    teacher: Mapping[str, Any] | None = None
    """Steps and guidance strength of the teacher, in place of a student."""
    steps: int = 4
    """Sampling steps."""


@attrs.frozen(kw_only=True)
class ProofMetric:
    """A number of an arm: the mean over `keys` of the mean over prompts."""

    name: str
    about: str
    keys: Sequence[str]
    """Values of the run's metrics."""
    splits: Sequence[str]


@attrs.frozen(kw_only=True)
class Claim:
    """A sentence and its criteria, all of which must hold."""

    id: str
    claim: str
    criteria: Sequence[Criterion]
    source: str = ""
    """Where the paper states it."""
    paper: str = ""
    """The paper's numbers, as printed."""
    paper_holds: bool | None = None
    """Whether it holds for the paper's printed numbers."""

    @property
    def arms(self) -> list[str]:
        """The arms that the criteria compare."""
        return list(dict.fromkeys(arm for criterion in self.criteria for arm in criterion.factors))


@attrs.frozen(kw_only=True)
class Proof:
    """Everything that a proof's file describes, with the options of one call."""

    title: str
    profile: str
    seeds: Sequence[int]
    prompts: Mapping[str, int]
    """Number of prompts by split."""
    options: Mapping[str, Any]
    """Options of every arm, in the form of a `--config` file."""
    arms: Mapping[str, ProofArm]
    metrics: Mapping[str, ProofMetric]
    claims: Sequence[Claim]
    without_meaning: Sequence[Mapping[str, Any]] = ()
    """Claims that cannot be tested with this teacher, each with the reason."""
    against: Sequence[str] = ()
    """The arms to which an author's component is added."""
    quick: bool = False

    def run(self, arm: str, seed: int, device: str, registry: Registry) -> Run:
        """The run that trains an arm.

        Raises:
            GuidedCDError: An option does not exist or is out of range; names the arm.
        """
        one = self.arms[arm]
        options = merged(self.options, one.options)
        content = {**options, "seed": seed, "device": device, "name": arm.replace("+", "-")}
        return resolve([read_profile(self.profile), Layer.of_file(content, f"arm '{arm}'")], registry)

    def with_steps(self, steps: int) -> Proof:
        """The proof whose runs have `steps` training steps, with a warmup and a cooldown of at most half of them."""
        options = merged(self.options, {"train": {"steps": steps}})
        schedule = options["train"].get("lr_schedule", {})
        short = {name: min(value, steps // 2) for name, value in schedule.items() if isinstance(value, int)}
        return attrs.evolve(self, options=merged(options, {"train": {"lr_schedule": short}}))

    def trained(self, arm: str) -> str | None:
        """The arm whose training an arm needs; None for the teacher."""
        one = self.arms[arm]
        return None if one.teacher is not None else one.student or arm

    def claims_of(self, arms: Sequence[str]) -> list[Claim]:
        """The claims whose arms are all among `arms`."""
        return [claim for claim in self.claims if set(claim.arms) <= set(arms)]


def read_proof(path: Path, *, quick: bool = False) -> Proof:
    """The proof of a TOML file.

    Args:
        path: The file.
        quick: Take its small version: fewer arms, one seed, smaller runs.

    Raises:
        GuidedCDError: The file is missing or malformed, or a name in it does not exist.
    """
    content = read_toml(path)
    check_form(content, FORM, path)
    small = content.get("quick") if quick else None
    if quick and small is None:
        raise GuidedCDError(f"{path} has no [quick]: run its full proof, or choose --arms and --seeds.")
    groups, splits = content.get("groups", {}), tuple(content["prompts"])
    arms = {}
    for name, one in content["arms"].items():
        options: Mapping[str, Any] = {}
        for group in one.get("groups", ()):
            options = merged(options, groups[_known(group, groups, f"{path}: group of arm '{name}'")])
        if parent := one.get("student"):
            _known(parent, content["arms"], f"{path}: student of arm '{name}'")
        arms[name] = ProofArm(
            name=name,
            about=one["about"],
            options=merged(options, one.get("options", {})),
            student=one.get("student"),
            teacher=one.get("teacher"),
            steps=one.get("steps", content["steps"]),
        )
    metrics = {
        name: ProofMetric(name=name, about=one["about"], keys=one["keys"], splits=one.get("splits", splits))
        for name, one in content["metrics"].items()
    }
    claims = [_claim(one, arms, metrics, path) for one in content["claims"]]
    proof = Proof(
        title=content["title"],
        profile=content["profile"],
        seeds=content["seeds"],
        prompts=content["prompts"],
        options=content["options"],
        arms=arms,
        metrics=metrics,
        claims=claims,
        without_meaning=content.get("without-meaning", ()),
        against=content.get("author", {}).get("against", ()),
    )
    if small is None:
        return proof
    chosen = [_known(name, arms, f"{path}: [quick] arm") for name in small["arms"]]
    return attrs.evolve(
        proof,
        quick=True,
        seeds=content["seeds"][:1],
        prompts=small.get("prompts", content["prompts"]),
        options=merged(content["options"], small.get("options", {})),
        arms={name: arms[name] for name in chosen},
        claims=proof.claims_of(chosen),
    )


def _claim(one: Mapping[str, Any], arms: Mapping[str, Any], metrics: Mapping[str, Any], path: Path) -> Claim:
    where = f"{path}: claim {one['id']}"
    if not one["criteria"]:
        raise GuidedCDError(f"{where} has no criteria.")
    criteria = [parse(text) for text in one["criteria"]]
    for criterion in criteria:
        _known(criterion.metric, metrics, f"{where}: metric")
        for arm in criterion.factors:
            _known(arm, arms, f"{where}: arm")
    return Claim(
        id=one["id"],
        claim=one["claim"],
        criteria=criteria,
        source=one.get("source", ""),
        paper=one.get("paper", ""),
        paper_holds=one.get("paper-holds"),
    )


def _known(name: str, names: Mapping[str, Any], where: str) -> str:
    if name not in names:
        raise GuidedCDError(f"{where} '{name}' does not exist.{suggest(name, names)} Known: {', '.join(names)}.")
    return name


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Two tables of options merged option by option; the second one takes precedence."""
    result = {ALIASES.get(key, key): deepcopy(value) for key, value in one.items()}
    for written, value in other.items():
        key = ALIASES.get(written, written)
        below = result.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        result[key] = merged(below, value) if both else deepcopy(value)  # type: ignore[arg-type]
    return result
