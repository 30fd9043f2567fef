"""Jobs of a proof: compute a latent store, or train an arm and measure it on the proof's prompts."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidedcd import __version__
from guidedcd.config.resolve import run_from_dict
from guidedcd.config.run import Run
from guidedcd.data import media
from guidedcd.data.clips import Prompt
from guidedcd.data.prompts import general
from guidedcd.devices import device
from guidedcd.evaluation.arms import build_metrics, video_seed
from guidedcd.evaluation.evaluate import machine
from guidedcd.inference.metric import Metric
from guidedcd.inference.pipeline import StudentPipeline, batch_size, teacher_videos
from guidedcd.models.teachers.contract import build_teacher
from guidedcd.plugins.registry import load_plugins
from guidedcd.preprocessing.preprocess import preprocess
from guidedcd.proving import results
from guidedcd.workflow import distil

SHOWN = 6
"""Videos of each split on an arm's contact sheet, of the first prompts."""


def fill_store(job: Mapping[str, Any]) -> None:
    """Compute the store of `job`, with the scores of the energies of all its runs."""
    for described in job["runs"]:
        preprocess(run_from_dict(described), store_folder=Path(job["store"]))


def measure_arms(job: Mapping[str, Any]) -> None:
    """Train the student of `job` unless it exists, sample it in each way that the job lists, and write results."""
    began, out, folder = time.perf_counter(), Path(job["out"]), Path(job["folder"])
    run = run_from_dict(job["run"])
    if not (folder / "student" / "student.json").is_file():
        distil(run, out=folder, store=job["store"], evaluation=False)
    trained = StudentPipeline.from_run(folder, device=run.device)
    training = time.perf_counter() - began
    for arm in job["arms"]:
        steps = arm["steps"]

        def sample(texts: Sequence[str], seeds: Sequence[int], steps: int = steps) -> Tensor:
            return trained(texts, steps, seeds)

        _measure(arm, job["seed"], out, run, trained.teacher, sample, training, job["prompts"])
        training = 0.0  # it counts once


def measure_teacher(job: Mapping[str, Any]) -> None:
    """Sample the teacher in each way that the job lists, and write results."""
    run = run_from_dict(job["run"])
    teacher = build_teacher(run.teacher, device(run.device))
    for arm in job["arms"]:
        options = {"steps": arm["teacher"]["steps"], "omega": arm["teacher"]["omega"]}

        def sample(texts: Sequence[str], seeds: Sequence[int], options: Mapping[str, Any] = options) -> Tensor:
            return teacher_videos(teacher, texts, seeds, **options)

        _measure(arm, job["seed"], Path(job["out"]), run, teacher, sample, 0.0, job["prompts"])


@torch.no_grad()
def _measure(
    arm: Mapping[str, Any],
    seed: int,
    out: Path,
    run: Run,
    teacher: Any,
    sample: Any,
    training: float,
    counts: Mapping[str, int],
) -> None:
    """Sample the videos of all prompts, and write their values and a contact sheet."""
    began = time.perf_counter()
    metrics = build_metrics(run.metrics, load_plugins(), teacher.geometry.fps, alone=True)
    prompts_of = getattr(teacher, "prompts", general)
    values: dict[str, dict[str, list[float]]] = {}
    shown: list[tuple[str, Tensor]] = []
    for number, (split, count) in enumerate(counts.items()):
        prompts = list(prompts_of(split, count))
        values[split] = {}
        size = batch_size(teacher)
        for start in range(0, len(prompts), size):
            batch_prompts = prompts[start : start + size]
            videos = sample(
                [p.text for p in batch_prompts],
                [video_seed(seed + 1, number, start + i) for i in range(len(batch_prompts))],
            )
            for key, numbers in _values(videos, batch_prompts, metrics).items():
                values[split].setdefault(key, []).extend(numbers)
            if not start:
                shown += [(p.text, video.cpu()) for p, video in zip(batch_prompts[:SHOWN], videos, strict=False)]
    sheet = out / "videos" / results.file_of(out, arm["name"], seed).with_suffix(".png").name
    sheet.parent.mkdir(parents=True, exist_ok=True)
    media.contact_sheet(sheet, [video for _, video in shown], [text for text, _ in shown])
    results.write(
        out,
        {
            "arm": arm["name"],
            "seed": seed,
            "settings": arm["settings"],
            "values": values,
            "seconds": round(time.perf_counter() - began + training, 1),
            "training_seconds": round(training, 1),
            "machine": machine(teacher.device),
            "versions": {"guidedcd": __version__, "torch": torch.__version__, "python": platform.python_version()},
            "date": time.strftime("%Y-%m-%d"),
        },
    )


def _values(videos: Tensor, prompts: Sequence[Prompt], metrics: Sequence[Metric]) -> dict[str, list[float]]:
    """The values of all metrics that apply to these prompts."""
    values: dict[str, list[float]] = {}
    for metric in metrics:
        if metric.applies(prompts):
            values |= metric.scores(videos, prompts)
    return values
