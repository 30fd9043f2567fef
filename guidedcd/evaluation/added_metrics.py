"""Metrics that are added to a finished evaluation: its videos are scored, and what it contains stays as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from guidedcd.config.from_python import components
from guidedcd.config.kinds import Chosen
from guidedcd.config.resolve import read_run
from guidedcd.config.run import Run
from guidedcd.config.sections import EvaluateConfig
from guidedcd.config.sources import options_of_run
from guidedcd.config.structure import changed, options_of, unstructure
from guidedcd.console import console, progress
from guidedcd.data import prompts
from guidedcd.data.clips import Prompt
from guidedcd.errors import GuidedCDError
from guidedcd.evaluation import tables
from guidedcd.evaluation.arms import Arm, further_headlines, headline
from guidedcd.evaluation.protocol import EvaluationProtocol
from guidedcd.evaluation.results import Scores, about_scores, differences, print_evaluation, scores_of
from guidedcd.files import digest, file_digest, write_json
from guidedcd.inference.metric import Metric
from guidedcd.inference.pipeline import StudentPipeline
from guidedcd.inference.student_folders import home, locate
from guidedcd.locks import locked
from guidedcd.plugins import objects
from guidedcd.plugins.registry import Registry


def chosen_metrics(metrics: Any, registry: Registry, folder: Path) -> list[Chosen]:
    """The metrics that a program or the command line names, for the run in `folder` or around it.

    Raises:
        GuidedCDError: A name or option that does not exist.
    """
    if isinstance(metrics, Sequence) and all(isinstance(one, Chosen) for one in metrics):
        return list(metrics)
    run_folder = home(folder)
    below = [] if run_folder is None else options_of_run(run_folder / "run.json")
    return components("metrics", metrics, "evaluate", registry, below)


def recorded_metrics(evaluation: tables.Evaluation, run: Run, registry: Registry) -> dict[str, Any]:
    """The metrics that were added to an evaluation, as far as they are installed, with their options."""
    recorded = {
        name: settings.get("options", {})
        for name, settings in evaluation.get("metric_settings", {}).items()
        if name not in run.metrics and name.partition(":")[0] in registry.of_kind("metric")
    }
    plain = {name: options for name, options in recorded.items() if objects.MARK not in options}
    return {one.name: one.config for one in components("metrics", plain, "evaluation.json", registry)}


def is_current(evaluation: tables.Evaluation, weights: Path, options: Mapping[str, Any]) -> bool:
    """Whether an evaluation was made of the student in the folder `weights`, with these options."""
    student = weights / "model.safetensors"
    chosen = {key: value for key, value in options.items() if key != "batch"}
    if isinstance(seeds := chosen.get("seeds"), int):
        chosen["seeds"] = list(range(seeds))
    previous = {key: evaluation.get("asked", {}).get(key) for key in chosen}
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in chosen.items()}
    return student.is_file() and evaluation.get("student") == file_digest(student)[:16] and previous == listed


def has_metrics(evaluation: tables.Evaluation, metrics: Sequence[Chosen]) -> bool:
    """Whether an evaluation has the scores of these metrics with the same options."""
    settings = evaluation.get("metric_settings", {})
    return all(digest(settings.get(one.name, {}).get("options")) == digest(unstructure(one.config)) for one in metrics)


def add_metrics(
    folder: str | Path, evaluation: dict[str, Any], metrics: Mapping[str, Any], *, device: str | None, quiet: bool
) -> dict[str, Any]:
    """Score the videos of an evaluation with further metrics, and write evaluation.json again.

    Args:
        folder: The folder of the run, or of a student or checkpoint in it.
        evaluation: Its evaluation.
        metrics: Configs of the metrics by name.
        device: Where tensors live; by default as in the run.
        quiet: Do not print the tables.

    Returns:
        The evaluation with the scores of these metrics.

    Raises:
        GuidedCDError: A metric cannot score these prompts, or returns a score that another metric has.
    """
    asked = dict(evaluation.get("asked", {}))
    is_own = asked.get("prompts") == "own"
    if is_own:
        del asked["prompts"]
    options = options_of(EvaluateConfig, {**asked, "seeds": tuple(evaluation["seeds"])}, "evaluation.json")
    run = read_run(locate(Path(folder))[0] / "run.json", for_sampling=True)
    config: EvaluateConfig = changed(run.evaluate, **options)
    trained = StudentPipeline.from_run(folder, device=device, dtype=config.dtype)
    trained.accelerate(config.fast)
    splits = _splits(evaluation, trained, None if is_own else config.prompts)
    protocol = EvaluationProtocol.build(trained, config, {}, metrics, splits)
    for name in metrics:
        if name not in [metric.name for metric in protocol.metrics]:
            raise GuidedCDError(f"metric '{name}' can score none of the prompts of this evaluation.")
    arms = [_arm(protocol, row) for row in evaluation["rows"] if row.get("source", "measured") == "measured"]
    videos = sum(map(len, splits.values())) * len(config.each_seed)
    with (
        locked(trained.results, "the evaluation in", ".evaluation.lock"),
        progress("evaluate", videos * sum(arm.evaluations for arm in arms), unit="network calls") as advance,
    ):
        console.print(f"evaluate adding {', '.join(metrics)} to {trained.results / 'evaluation.json'}", markup=False)
        measured = {arm.name: protocol.measure(arm, advance) for arm in arms}
        by_prompt = {name: {split: m.by_prompt() for split, m in of.items()} for name, of in measured.items()}
        _merge(evaluation, protocol.metrics, by_prompt)
        evaluation["summary"] = tables.summary(evaluation)
        write_json(trained.results / "evaluation.json", evaluation)
        protocol.finished.remove()
    print_evaluation(evaluation, quiet=quiet)
    return evaluation


def _splits(evaluation: tables.Evaluation, trained: StudentPipeline, count: Any) -> dict[str, list[Prompt]]:
    """The prompts of an evaluation, with the scenes that its teacher has for its own."""
    texts: dict[str, list[str]] = {name: about["prompts"] for name, about in evaluation["splits"].items()}
    if isinstance(count, int):
        splits, _ = prompts.evaluation(trained.teacher, count)
        if {name: [prompt.text for prompt in split] for name, split in splits.items()} == texts:
            return splits
    return {name: [Prompt(text=text) for text in split] for name, split in texts.items()}


def _arm(protocol: EvaluationProtocol, row: Mapping[str, Any]) -> Arm:
    """The arm of a row."""
    if row["name"] == tables.OURS:
        return protocol.student()
    arm = protocol.teacher(row["steps"], row["omega"], row["solver"])
    return attrs.evolve(arm, name=row["name"], label=row["label"])


def _merge(evaluation: dict[str, Any], metrics: Sequence[Metric], by_prompt: Scores) -> None:
    """Add scores to the rows and differences of an evaluation; those of the same metrics are replaced.

    Raises:
        GuidedCDError: Another metric has a score of the same name.
    """
    new = {key: None for split in by_prompt[tables.OURS].values() for key in split}
    about = about_scores(metrics, new)
    for key, one in about.items():
        other = evaluation["metrics"].get(key, one).get("metric", one["metric"])
        if other != one["metric"]:
            raise GuidedCDError(
                f"metric '{one['metric']}' returns the score '{key}', which metric '{other}' has already."
            )
    for row in evaluation["rows"]:
        for split, scores in by_prompt.get(row["name"], {}).items():
            row["scores"].setdefault(split, {}).update(scores_of(scores))
    evaluation["metrics"].update(about)
    evaluation.setdefault("metric_settings", {}).update({one.name: dict(one.settings) for one in metrics})
    kept = [one for one in evaluation["differences"] if one["score"] not in new]
    evaluation["differences"] = kept + differences(by_prompt)
    if not evaluation.get("headline") and (first := headline(metrics, new)):
        evaluation["headline"] = first[0]
    listed = [*evaluation.get("headlines", ()), *further_headlines(metrics, new)]
    evaluation["headlines"] = list(dict.fromkeys(listed))
