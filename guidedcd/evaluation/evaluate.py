"""Evaluation of a trained student and its teacher on the same prompts and initial noise: evaluation.json.

The few-step teacher is the best of several solvers and guidance strengths, chosen on separate prompts. A step costs a
student one network call and a guided teacher two, so that the teacher is measured both with the student's number of
steps and with its number of network calls.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from guidedcd import __version__
from guidedcd.config.resolve import read_run
from guidedcd.config.sections import EvaluateConfig
from guidedcd.config.structure import changed, options_of
from guidedcd.console import console, counted, progress
from guidedcd.data import media, prompts
from guidedcd.evaluation import model_card, tables
from guidedcd.evaluation.added_metrics import add_metrics, chosen_metrics, is_current, recorded_metrics
from guidedcd.evaluation.arms import Arm, ArmScores, further_headlines, headline, video_seed
from guidedcd.evaluation.protocol import Baselines, EvaluationProtocol
from guidedcd.evaluation.results import about_scores, differences, print_evaluation, scores_of
from guidedcd.files import file_digest, write_json
from guidedcd.inference.pipeline import StudentPipeline
from guidedcd.inference.student_folders import locate, results_of
from guidedcd.locks import locked
from guidedcd.plugins.registry import load_plugins


def evaluate(
    folder: str | Path,
    *,
    device: str | None = None,
    baselines: Baselines | None = None,
    quiet: bool = False,
    metrics: str | Sequence[Any] | Mapping[str, Any] | None = None,
    **options: Any,
) -> dict:
    """Measure a student, print tables, and write `evaluation.json` and `videos/`.

    An evaluation that was interrupted continues after its last finished batch of videos. The files lie in the run's
    folder, those of a checkpoint in its folder `evaluations/step-NNNNNN/`.

    With `metrics`, an evaluation of the present student is kept, and these metrics are added to it. They score the
    videos that it sampled, in the folder `evaluation_videos`; those that are missing are sampled again.

    Args:
        folder: The folder of a run, or of a student or checkpoint in it.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps"; by default as in the run.
        baselines: Scores of teachers that are read and extended, so that several runs measure a teacher once.
        quiet: Do not print the tables.
        metrics: Metrics to measure besides those of the run, in the forms of `Run.from_profile`.
        **options: The fields of `EvaluateConfig`, by default as in the run's section `evaluate`.

    Returns:
        The content of evaluation.json.

    Raises:
        GuidedCDError: There is no student, or an option is out of range.
    """
    if isinstance(texts := options.get("prompts"), str):
        options["prompts"] = [texts]
    options = options_of(EvaluateConfig, options, "an evaluation", mark="--")
    registry = load_plugins()
    added = {} if metrics is None else {one.name: one.config for one in chosen_metrics(metrics, registry, Path(folder))}
    run_folder, weights = locate(Path(folder))
    results = results_of(run_folder, weights)
    previous = tables.read_if_there(results)
    if added and previous is not None and is_current(previous, weights, options):
        return add_metrics(folder, previous, added, device=device, quiet=quiet)
    run = read_run(run_folder / "run.json", for_sampling=True)
    config: EvaluateConfig = changed(run.evaluate, **options)
    trained = StudentPipeline.from_run(folder, device=device, dtype=config.dtype)
    trained.accelerate(config.fast)
    measured_before = recorded_metrics(previous, run, registry) if previous is not None else {}
    chosen = {**run.metrics, **measured_before, **added}
    protocol = EvaluationProtocol.build(trained, config, {} if baselines is None else baselines, chosen)
    student = protocol.student()
    with (
        locked(trained.results, "the evaluation in", ".evaluation.lock"),
        progress("evaluate", protocol.work(), unit="network calls") as advance,
    ):
        console.print(_start(protocol))
        protocol.warm_up(student)
        arms = [student, *(protocol.choose(n, advance) for n in config.few_steps)]
        measured = {arm.name: protocol.measure(arm, advance) for arm in arms}
        slow = protocol.slow_teacher()
        panes = [*([] if slow.name in measured else [slow]), arms[1], student]
        videos = _write_videos(protocol, panes, measured, advance)
        evaluation = _to_dict(trained, config, protocol, arms, measured)
        evaluation["videos"] = videos
        evaluation["summary"] = tables.summary(evaluation)
        write_json(trained.results / "evaluation.json", evaluation)
        protocol.finished.remove()
        protocol.sampled.tidy()
    print_evaluation(evaluation, quiet=quiet)
    return evaluation


def _start(protocol: EvaluationProtocol) -> str:
    """The line that is printed before the first batch."""
    prompts_ = counted(sum(map(len, protocol.splits.values())), "prompt")
    line = f"evaluate {prompts_}, {counted(len(protocol.config.each_seed), 'seed')} each: {protocol.trained.results}"
    if batches := len(protocol.finished):
        line += f", continuing after {counted(batches, 'finished batch', 'finished batches')}"
    return line


def _to_dict(
    trained: StudentPipeline,
    config: EvaluateConfig,
    protocol: EvaluationProtocol,
    arms: Sequence[Arm],
    measured: Mapping[str, dict[str, ArmScores]],
) -> dict[str, Any]:
    """The evaluation as JSON values, without videos and summary."""
    by_prompt = {name: {split: m.by_prompt() for split, m in splits.items()} for name, splits in measured.items()}
    keys = {key: None for split in by_prompt[arms[0].name].values() for key in split}
    about = about_scores(protocol.metrics, keys)
    first = headline(protocol.metrics, keys)
    return {
        "guidedcd": __version__,
        "run": trained.run.name,
        "student": file_digest(trained.weights / "model.safetensors")[:16],
        "teacher": trained.run.teacher.name,
        "machine": machine(trained.teacher.device),
        "seeds": list(config.each_seed),
        "steps": config.steps,
        "asked": {
            "prompts": config.prompts if isinstance(config.prompts, int) else "own",
            "seeds": list(config.each_seed),
            "steps": config.steps,
            "omega": config.omega,
            "teacher_omega": list(config.teacher_omega),
            "scale": dict(config.scale) if isinstance(config.scale, Mapping) else config.scale,
            "videos": config.videos,
            "dtype": config.dtype,
            "batch": protocol.batch,
            "fast": config.fast,
            "teacher_steps": config.teacher_steps,
        },
        "splits": {
            name: {"title": prompts.SPLITS.get(name, name), "prompts": [prompt.text for prompt in split]}
            for name, split in protocol.splits.items()
        },
        "choice": {"prompts": len(protocol.choosing), "tried": protocol.tried},
        "metrics": about,
        "metric_settings": {metric.name: dict(metric.settings) for metric in protocol.metrics},
        "headline": first[0] if first else None,
        "headlines": further_headlines(protocol.metrics, keys),
        "against": arms[1].name,
        "rows": [_row(arm, measured[arm.name], by_prompt[arm.name]) for arm in arms]
        + model_card.rows(trained.teacher, keys),
        "differences": differences(by_prompt),
    }


def _row(arm: Arm, measured: Mapping[str, ArmScores], by_prompt: Mapping[str, Mapping[str, list[float]]]) -> dict:
    count = sum(m.count for m in measured.values())
    return {
        **arm.about(),
        "source": "measured",
        "seconds": round(sum(m.seconds for m in measured.values()) / count, 5) if count else None,
        "scores": {split: scores_of(scores) for split, scores in by_prompt.items()},
    }


def _write_videos(
    protocol: EvaluationProtocol, arms: Sequence[Arm], measured: Mapping[str, Mapping[str, ArmScores]], advance: Any
) -> list[dict[str, Any]]:
    """Write the videos of the report, one per prompt and arm; those of a prompt start from the same noise."""
    geometry = protocol.trained.teacher.geometry
    enlarge = media.viewing_factor(geometry.height, geometry.width)
    entries: list[dict[str, Any]] = []
    for number, (name, split) in enumerate(protocol.splits.items()):
        indices = protocol.in_report[name]
        numbers = {index: video_seed(protocol.config.each_seed[0], number, index) for index in indices}
        for index in indices:
            entries.append({"prompt": split[index].text, "split": name, "seed": numbers[index], "panes": []})
        for arm in arms:
            if arm.name in measured:
                videos = measured[arm.name][name].videos
            else:
                texts, seeds = [split[p].text for p in indices], [numbers[p] for p in indices]
                videos = dict(zip(indices, protocol.videos(arm, texts, seeds, advance), strict=True))
            for index, entry in zip(indices, entries[len(entries) - len(indices) :], strict=True):
                file = Path("videos") / f"{number}{index:02d}-{arm.name}.mp4"
                about = {"prompt": entry["prompt"], "seed": entry["seed"], **arm.about()}
                media.write_video(
                    protocol.trained.results / file, videos[index], fps=geometry.fps, enlarge=enlarge, metadata=about
                )
                entry["panes"].append({"row": arm.name, "label": arm.label, "file": str(file)})
    return entries


def machine(device: torch.device) -> str:
    """The name of the device, e.g. "NVIDIA H200" or "x86_64 CPU, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {device.type.upper()}, {torch.get_num_threads()} threads"
