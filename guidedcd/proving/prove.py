"""Train and measure the arms of a proof, and write the ledger. No torch here: other processes do the work."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from guidedcd import __version__
from guidedcd.config.run import Run
from guidedcd.console import console, counted, duration, progress
from guidedcd.errors import GuidedCDError, suggest
from guidedcd.files import check_writable, digest, path_name
from guidedcd.locks import locked
from guidedcd.plugins.registry import Registry
from guidedcd.plugins.sources import origin
from guidedcd.proving import ledger, results
from guidedcd.proving.pool import Job, Pool
from guidedcd.proving.proof import Proof

STORE_OPTIONS = ("teacher", "data", "solver", "preprocess", "seed")
"""The keys of a run that its store depends on."""
NOT_SETTINGS = ("seed", "device", "name", "guidedcd", "plugin_files")
"""The keys of a run that change no number, or are recorded on their own."""


@attrs.frozen(kw_only=True)
class ProofConfig:
    """What one call computes."""

    out: Path
    work: Path
    """The folder of stores, runs and logs."""
    arms: Sequence[str]
    seeds: Sequence[int]
    device: str = "auto"
    parallel: int = 1
    budget: float = float("inf")
    command: str = ""


def prove(proof: Proof, config: ProofConfig, registry: Registry) -> dict[str, Any]:
    """Compute the missing results, and write the ledger of all results.

    Args:
        proof: The arms, metrics and claims.
        config: Which of them, and where.
        registry: The installed plugins.

    Returns:
        The ledger.

    Raises:
        GuidedCDError: An option of an arm is wrong, or a result in the folder is of other settings.
    """
    began = time.monotonic()
    check_writable(config.out)
    runs = {(arm, seed): _run(proof, arm, seed, config, registry) for seed in config.seeds for arm in config.arms}
    settings = {key: _settings(proof, key[0], run, registry) for key, run in runs.items()}
    with locked(config.out, "the results"):
        done = results.read_all(config.out)
        results.check_same(done, config.arms, settings)
        missing = [key for key in runs if key[1] not in done.get(key[0], {})]
        jobs = _jobs(proof, config, runs, settings, missing)
        kept = f", {counted(len(runs) - len(missing), 'result')} kept" if len(missing) < len(runs) else ""
        console.print(
            f"prove    {counted(len(config.arms), 'arm')} x {counted(len(config.seeds), 'seed')}: "
            f"{counted(len(missing), 'result')} to compute{kept}"
        )
        failed = _compute(config, jobs) if jobs else {}
        about = {"command": config.command, "seconds": round(time.monotonic() - began), "failed": failed}
        page = ledger.write(proof, config.out, about)
    return page


def rewrite(proof: Proof, out: Path, command: str = "") -> dict[str, Any]:
    """Write the ledger of the results in a folder, which may come from several machines; nothing is computed.

    Raises:
        GuidedCDError: There are no results, or those of one arm are of several settings.
    """
    done = results.read_all(out)
    if not set(done) & set(proof.arms):
        raise GuidedCDError(f"{out / results.FOLDER} has no results of this proof.")
    for arm, by_seed in done.items():
        if len({digest(result["settings"]) for result in by_seed.values()}) > 1:
            raise GuidedCDError(
                f"the results of arm '{arm}' in {out / results.FOLDER} are of several settings, so that their seeds "
                "cannot be compared. Remove those of the older ones."
            )
    return ledger.write(proof, out, {"command": command})


def chosen_arms(proof: Proof, arms: Sequence[str] | None, claims: Sequence[str] | None) -> list[str]:
    """The arms that a call names, and those of the claims that it names; all of them if it names nothing.

    Raises:
        GuidedCDError: There is no such arm or claim.
    """
    by_id = {claim.id: claim for claim in proof.claims}
    for kind, names, listed in (("arm", arms, proof.arms), ("claim", claims, by_id)):
        for name in names or ():
            if name not in listed:
                raise GuidedCDError(
                    f"there is no {kind} '{name}'.{suggest(name, listed)} `guidedcd prove --list` prints them."
                )
    if arms is None and claims is None:
        return list(proof.arms)
    needed = {*(arms or ()), *(arm for name in claims or () for arm in by_id[name].arms)}
    return [arm for arm in proof.arms if arm in needed]


def _run(proof: Proof, arm: str, seed: int, config: ProofConfig, registry: Registry) -> Run:
    """The run behind an arm: its own, that of the student that it samples, or the common one of the teacher."""
    return proof.run(proof.trained(arm) or arm, seed, config.device, registry)


def _settings(proof: Proof, arm: str, run: Run, registry: Registry) -> dict[str, Any]:
    """Digests of what a result depends on, including the source of its energies, rewards, routes and metrics."""
    one, described = proof.arms[arm], run.to_dict()
    keys = ("teacher", "metrics") if one.teacher is not None else tuple(described)
    kinds = ("metric",) if one.teacher is not None else ("energy", "reward", "route", "metric")
    components = [chosen.component(registry) for kind in kinds for chosen in run.chosen(kind)]
    return {
        "run": digest({key: described[key] for key in keys if key not in NOT_SETTINGS}),
        "code": {component.name: origin(component)["source"] for component in components},
        "sampling": {"steps": one.steps} if one.teacher is None else dict(one.teacher),
        "prompts": dict(proof.prompts),
        "guidedcd": __version__,
    }


def _jobs(
    proof: Proof,
    config: ProofConfig,
    runs: Mapping[tuple[str, int], Run],
    settings: Mapping[tuple[str, int], Mapping[str, Any]],
    missing: Sequence[tuple[str, int]],
) -> list[Job]:
    """The jobs of the missing results, seed by seed; the store of several arms comes before them."""
    jobs: list[Job] = []
    stores: dict[str, dict[str, Any]] = {}
    students: dict[tuple[str, int], dict[str, Any]] = {}
    teachers: dict[int, dict[str, Any]] = {}
    for arm, seed in missing:
        one, described, trained = proof.arms[arm], runs[arm, seed].to_dict(), proof.trained(arm)
        entry = {"name": arm, "steps": one.steps, "teacher": one.teacher, "settings": settings[arm, seed]}
        common = {"seed": seed, "out": str(config.out), "prompts": dict(proof.prompts), "run": described}
        if trained is None:
            if seed not in teachers:
                log = str(config.work / "logs" / f"teacher-{seed}.log")
                teachers[seed] = {"kind": "teacher", "arms": [], "log": log, **common}
                jobs.append(Job(id=f"teacher, seed {seed}", content=teachers[seed]))
            teachers[seed]["arms"].append(entry)
            continue
        if (trained, seed) not in students:
            key = digest({name: settings[arm, seed][name] for name in ("run", "code")})
            folder = config.work / "runs" / f"{path_name(trained)}-{seed}-{key[:6]}"
            content = {"kind": "student", "arms": [], "folder": str(folder), **common}
            content["log"] = str(config.work / "logs" / f"{folder.name}.log")
            after = None
            if not (folder / "student" / "student.json").is_file():
                key = digest({name: described[name] for name in STORE_OPTIONS})
                content["store"], after = str(config.work / "stores" / key), f"store {key}"
                if key not in stores:
                    log = str(config.work / "logs" / f"store-{key}.log")
                    stores[key] = {"kind": "store", "runs": [], "store": content["store"], "log": log}
                    jobs.append(Job(id=after, content=stores[key]))
                # Runs with the same energies need the same of the store; those with energies come first.
                energies = [one["energies"] for one in stores[key]["runs"]]
                if described["energies"] not in energies:
                    stores[key]["runs"].append(described)
                    stores[key]["runs"].sort(key=lambda one: not one["energies"])
            content.setdefault("store", None)
            students[trained, seed] = content
            jobs.append(Job(id=f"{trained}, seed {seed}", content=content, after=after))
        students[trained, seed]["arms"].append(entry)
    return jobs


def _compute(config: ProofConfig, jobs: Sequence[Job]) -> dict[str, str]:
    """Compute jobs with a line of progress; returns the error of each job that failed or was not begun in time."""
    failed: dict[str, str] = {}
    with progress("prove", len(jobs), unit="jobs") as advance:

        def finished(job: Job, error: str | None) -> None:
            if error is not None:
                failed[job.id] = error
                console.print(f"failed   {job.id}: {error} (see {job.content['log']})", markup=False)
            advance(1, note=job.id)

        began = time.monotonic()
        left = Pool(parallel=config.parallel, budget=config.budget, finished=finished).compute(jobs)
        took = time.monotonic() - began
    failed |= {job.id: "not begun within the budget" for job in left}
    if left:
        console.print(f"prove    {counted(len(left), 'job')} not begun within the budget; the same command continues")
    console.print(f"prove    {duration(took)}")
    return failed
