"""A training run from end to end: preprocess what is missing, train or continue, evaluate, report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from guidedcd.acceleration.flash_attention import flash_attention
from guidedcd.config.kinds import KINDS
from guidedcd.config.proportions import unscaled
from guidedcd.config.run import Run
from guidedcd.console import console
from guidedcd.data.routing import Reader, Router, Sample, counts, rules_of
from guidedcd.devices import blame_memory, device, process
from guidedcd.energies.traits import check_references
from guidedcd.errors import GuidedCDError
from guidedcd.evaluation import tables
from guidedcd.files import file_digest, write_json
from guidedcd.models import initial_lora
from guidedcd.models.teachers.contract import build_teacher
from guidedcd.models.teachers.protocol import Teacher
from guidedcd.plugins.registry import blame, load_plugins
from guidedcd.plugins.requirements import unmet
from guidedcd.plugins.sources import origin
from guidedcd.preprocessing.bucket_stores import open_stores, preprocess_all
from guidedcd.rewards import contract
from guidedcd.rewards.contract import build_rewards, rehearse
from guidedcd.rewards.latents import scores_own_videos
from guidedcd.training import optimizer, rollouts, sentinel, store_uses, trackers
from guidedcd.training.distributed import accelerator_for
from guidedcd.training.run_folder import check_student, claimed, run_folder
from guidedcd.training.trainer import Trainer


def distil(
    run: Run,
    *,
    out: str | Path | None = None,
    store: str | Path | None = None,
    new: bool = False,
    evaluation: bool = True,
    command: str | None = None,
) -> Path:
    """Distil `run`'s teacher: preprocess what is missing, train or continue, evaluate, and write the report.

    Args:
        run: The configuration.
        out: The run's folder; by default the newest unfinished run with the same configuration, or a new folder.
        store: The latent store's folder; by default the one of the run's fingerprint.
        new: Start a new run even where an unfinished one could be continued.
        evaluation: Whether to evaluate the student. Without it the run counts as unfinished, and the same run with it,
            or `guidedcd.evaluate`, evaluates the student later.
        command: The command line, which a new run keeps in its run.json.

    Returns:
        The run's folder, with `student/`, `log.jsonl`, `evaluation.json` and `report.html`.

    Raises:
        GuidedCDError: A mistake in the configuration, a damaged or foreign file, a full disk, no memory, or a loss
            that is not finite.
    """
    from guidedcd.evaluation.evaluate import evaluate
    from guidedcd.evaluation.report.page import write_report

    out, store = (None if path is None else Path(path) for path in (out, store))
    process()
    where = device(run.device)
    accelerator = accelerator_for(run, where)
    if where.type == "cuda" and accelerator.num_processes > 1:
        where = accelerator.device
    main = accelerator.is_main_process
    console.quiet = not main
    rewards: dict[str, Any] | None = None
    if main:
        check_student(run_folder(run, out, new=new))
        if note := unscaled(run):
            console.print(f"note     {note}")
        rewards = _check_components(run, where)
    console.print(f"train    building the teacher {run.teacher.name}" + _listed("the rewards", run.rewards))
    with blame_memory("the teacher"):
        teacher = build_teacher(run.teacher, where)
    if run.student.init and main:
        initial_lora.check(teacher, run.student.init)
    if rewards is not None:
        rehearse(rewards, run, teacher.geometry, where, teacher)
        for reward in rewards.values():
            reward.to("cpu")  # the preprocessing needs the memory of the device
    router = None if rewards is None else _router(run, rewards, teacher)
    accept = router if run.routes else None  # without rules no route can be wrong
    folders = preprocess_all(run, store_folder=store, teacher=teacher, fill_parts=False, accept=accept)
    latents = open_stores(run, folders)
    routes = [router(Sample(**fields))[1] for fields in latents.samples] if router is not None else []
    with claimed(run, out, new=new, command=command) if main else nullcontext() as folder:
        (folder,) = broadcast_object_list([folder])
        if main:
            for one in folders:
                store_uses.note(one, folder)
            write_json(folder / "routing.json", counts(routes, run.rewards, run.energies))
        if not (folder / "student" / "student.json").exists():
            Trainer(run, folder, latents, teacher, accelerator, rewards).fit()
        rewards = None  # the evaluation needs the memory
        # The other processes are done, and must not wait for the evaluation in a collective.
        accelerator.free_memory()
        del teacher, latents
        if main:
            if not evaluation:
                console.print(f"evaluate skipped; `guidedcd evaluate {folder}` measures the student", markup=False)
            elif not _is_evaluated(folder):
                evaluate(folder)
            console.print(f"report   {write_report(folder)}")
    return folder


def _listed(what: str, names: Iterable[str]) -> str:
    """E.g. " and the rewards hps, clip"; "" without names."""
    return f" and {what} {text}" if (text := ", ".join(names)) else ""


def _is_evaluated(folder: Path) -> bool:
    """Whether a run's evaluation belongs to its present student."""
    evaluation = tables.read_if_there(folder)
    if evaluation is None:
        return False
    return evaluation.get("student") == file_digest(folder / "student" / "model.safetensors")[:16]


def _check_components(run: Run, where: torch.device) -> dict[str, Any]:
    """Load all plugins and rewards before the preprocessing, so that a missing package or file stops the run early.

    Returns:
        The rewards by name.

    Raises:
        GuidedCDError: A component cannot be loaded, lacks a member, or a routing rule returns a wrong route.
    """
    registry = load_plugins()
    components = [chosen.component(registry) for kind in KINDS.values() for chosen in run.chosen(kind)]
    plugins = {component.plugin for component in components}
    notes = [f"{note.plugin}: {note.text}." for note in registry.notes if note.plugin in plugins]
    for line in (*unmet(sorted(plugins)), *notes):
        console.print(f"warning  {line}", markup=False)
    for component in components:
        origin(component)  # the process keeps the digest of the source, which may be edited once it is imported
    for kind in ("energy", "metric"):
        for chosen in run.chosen(kind):
            chosen.component().load()
    check_references(run)
    optimizer.check(run.train)
    for settings in (run.preprocess, run.train):
        with flash_attention(settings, where):
            pass
    trackers.check(run.train.tracker)
    if run.train.sentinel.every:
        sentinel.check(run)
    with blame_memory("the rewards", "Use fewer --rewards"):
        rewards = build_rewards(run)
    _check_run(run, {str(run.component("reward", name, registry)): reward for name, reward in rewards.items()})
    energies = [chosen for chosen in run.chosen("energy") if hasattr(chosen.component(registry).load(), "check_run")]
    _check_run(run, {str(chosen.component(registry)): chosen.build(registry) for chosen in energies})
    _check_routes(run, rewards)
    rollouts.listed(run)
    return rewards


def _check_run(run: Run, components: Mapping[str, Any]) -> None:
    """Let each component that has `check_run` object to the run; `components` are by description for errors."""
    for whose, component in components.items():
        if (check := getattr(component, "check_run", None)) is not None:
            with blame(whose):
                check(run)


def _check_routes(run: Run, rewards: Mapping[str, Any]) -> None:
    """Apply the routing rules to a made-up sample.

    A rule may need metadata that the made-up sample has not. Therefore only what it returns is checked; an exception
    counts on a clip.

    Raises:
        GuidedCDError: A rule returns something else than a route to rewards and energies of the run.
    """
    rules = rules_of(run)
    _check_run(run, rules)
    try:
        Router(rules, _readers(rewards), run.energies)(
            Sample(id="example", dataset=run.data[0].name, caption=contract.CAPTION)
        )
    except GuidedCDError as error:
        if not hasattr(error, "__notes__"):  # the rule's own sentence has one
            raise
    except Exception:
        return


def _router(run: Run, rewards: Mapping[str, Any], teacher: Teacher) -> Router:
    """Routes clips before they cost GPU time, so that a rule that fails for any of them stops the run early.

    The prompts of the student's own videos are routed at once.

    Raises:
        GuidedCDError: A rule returns a wrong route for a prompt, or no prompt goes to a reward.
    """
    router = Router(rules_of(run), _readers(rewards), run.energies)
    if run.routes and run.train.rollouts.videos and any(map(scores_own_videos, rewards.values())):
        own = rollouts.own_prompts(run, teacher)
        if own:
            rollouts.scored(run, own, router)
    return router


def _readers(rewards: Mapping[str, Any]) -> dict[str, Reader]:
    """The rewards as readers of text."""
    return {name: Reader(max_tokens=one.max_tokens, count=one.count_tokens) for name, one in rewards.items()}
