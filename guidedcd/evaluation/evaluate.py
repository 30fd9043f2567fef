"""Measuring a trained student against its teacher on paired prompts and initial noise: evaluation.json.

The few-step teacher is the best of several solvers and guidance strengths, chosen on other prompts than those that are
measured. A student's step costs one network call, a guided teacher's two, so the teacher is measured both at as many
steps and at as many calls.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch

from guidedcd.console import console, progress
from guidedcd.data import media, prompts
from guidedcd.errors import GuidedCDError
from guidedcd.evaluation import model_card, tables
from guidedcd.evaluation.arms import Arm, Measured, headline, video_seed
from guidedcd.evaluation.bootstrap import estimate, paired
from guidedcd.evaluation.protocol import Baselines, Bench, Settings, steps_of
from guidedcd.files import file_digest, write_json
from guidedcd.inference.pipeline import Trained, batch_size, load, strengths, student_videos
from guidedcd.locks import locked
from guidedcd.version import __version__

MOST_STEPS = 50
"""Steps of a student, as of `--evaluate.steps`."""


def run_evaluate(folder: Path, *, baselines: Baselines | None = None, quiet: bool = False, **options: Any) -> dict:
    """Measure a student, print the table, and write `evaluation.json` and `videos/`.

    They go into the run's folder, those of a checkpoint into `evaluations/step-NNNNNN/` there.

    Args:
        folder: The run's folder, or a student's or checkpoint's inside it.
        baselines: Filled and used, to measure a teacher that several runs share only once.
        quiet: Do not print the table.
        **options: The fields of `Settings`.

    Returns:
        The content of evaluation.json.

    Raises:
        GuidedCDError: There is no student, or an option is out of range.
    """
    settings = Settings(**options)
    if not settings.seeds or len(set(settings.seeds)) < len(settings.seeds):
        raise GuidedCDError("--seeds must be one or more different numbers.")
    trained = load(folder, device=settings.device, dtype=settings.dtype)
    trained.quicken(settings.fast)
    asked = _asked(trained, settings)
    bench = Bench.build(trained, asked, {} if baselines is None else baselines)
    scales = strengths(trained, asked.scale)
    steps = asked.steps
    make = partial(student_videos, trained, steps=steps, omega=asked.omega, scales=scales)
    ours = Arm(
        name=tables.OURS,
        label=f"student, {steps_of(steps)}",
        steps=steps,
        evaluations=steps,
        omega=asked.omega,
        solver="",
        make=make,
        scales=scales,
    )
    with (
        locked(trained.results, "the evaluation in", ".evaluation.lock"),
        progress("evaluate", bench.work(steps), unit="videos") as advance,
    ):
        bench.warm_up(ours)
        arms = [ours, *(bench.choose(n, advance) for n in dict.fromkeys((steps, max(1, steps // 2))))]
        measured = {arm.name: bench.measure(arm, advance) for arm in arms}
        slow = bench.teacher(trained.run.evaluate.teacher_steps, asked.omega, "ddim")
        shown = [*([] if slow.name in measured else [slow]), arms[1], ours]
        videos = _write_videos(bench, shown, measured, advance)
        found = _described(trained, asked, bench, arms, measured)
        found["videos"] = videos
        found["summary"] = tables.summary(found)
        write_json(trained.results / "evaluation.json", found)
    if not quiet:
        for table in tables.tables(found):
            console.print(table)
        console.print("95 % intervals by the bootstrap over prompts; differences are paired by prompt and noise.")
    console.print(f"evaluate {found['summary']}")
    return found


def _asked(trained: Trained, settings: Settings) -> Settings:
    """The settings, completed by the run's."""
    run = trained.run.evaluate
    filled = {
        name: getattr(run, name)
        for name in ("prompts", "steps", "omega", "teacher_omega", "videos")
        if getattr(settings, name) is None
    }
    settings = attrs.evolve(settings, **filled, batch=settings.batch or batch_size(trained.teacher))
    if settings.steps > MOST_STEPS:
        raise GuidedCDError(f"--steps must be at most {MOST_STEPS}, not {settings.steps}.")
    if not all(0 <= omega < math.inf for omega in (settings.omega, *settings.teacher_omega)):
        raise GuidedCDError("--omega and --teacher-omega must be finite numbers of at least 0.")
    few = isinstance(settings.prompts, int) and settings.prompts < 1
    if few or settings.steps < 1 or settings.batch < 1 or settings.videos < 0 or not settings.teacher_omega:
        raise GuidedCDError("an evaluation needs at least one prompt, step, video a batch and teacher omega.")
    return settings


def _described(
    trained: Trained, asked: Settings, bench: Bench, arms: Sequence[Arm], measured: Mapping[str, dict[str, Measured]]
) -> dict[str, Any]:
    """The evaluation as JSON, but for videos and summary."""
    by_prompt = {name: {split: m.by_prompt() for split, m in parts.items()} for name, parts in measured.items()}
    keys = {key: None for split in by_prompt[arms[0].name].values() for key in split}
    about = {key: metric.about(key) for metric in bench.metrics for key in keys if key in metric.made}
    first = headline(bench.metrics, keys)
    return {
        "guidedcd": __version__,
        "run": trained.run.name,
        "student": file_digest(trained.weights / "model.safetensors")[:16],
        "teacher": trained.run.teacher.name,
        "machine": machine(trained.teacher.device),
        "seeds": list(asked.seeds),
        "steps": asked.steps,
        "asked": {
            "prompts": asked.prompts if isinstance(asked.prompts, int) else "own",
            "seeds": list(asked.seeds),
            "steps": asked.steps,
            "omega": asked.omega,
            "teacher_omega": list(asked.teacher_omega),
            "scale": asked.scale if asked.scale is None or isinstance(asked.scale, int | float) else dict(asked.scale),
            "videos": asked.videos,
            "dtype": asked.dtype,
            "batch": asked.batch,
        },
        "splits": {
            name: {"title": prompts.SPLITS.get(name, name), "prompts": [prompt.text for prompt in split]}
            for name, split in bench.splits.items()
        },
        "choice": {"prompts": len(bench.choosing), "tried": bench.tried},
        "metrics": about,
        "headline": first[0] if first else None,
        "against": arms[1].name,
        "rows": [_row(arm, measured[arm.name], by_prompt[arm.name]) for arm in arms]
        + model_card.rows(trained.teacher, keys),
        "differences": [
            {"row": arms[0].name, "against": arm.name, "split": split, "score": key, **paired(mine, theirs).to_dict()}
            for arm in arms[1:]
            for split, scores in by_prompt[arms[0].name].items()
            for key, mine in scores.items()
            for theirs in [by_prompt[arm.name][split][key]]
        ],
    }


def _row(arm: Arm, measured: Mapping[str, Measured], by_prompt: Mapping[str, Mapping[str, list[float]]]) -> dict:
    count = sum(m.count for m in measured.values())
    return {
        **arm.about(),
        "source": "measured",
        "seconds": round(sum(m.seconds for m in measured.values()) / count, 5) if count else None,
        "scores": {
            split: {
                key: {
                    **estimate(values).to_dict(),
                    "values": [None if math.isnan(v) else round(v, 6) for v in values],
                }
                for key, values in scores.items()
            }
            for split, scores in by_prompt.items()
        },
    }


def _write_videos(
    bench: Bench, arms: Sequence[Arm], measured: Mapping[str, Mapping[str, Measured]], advance: Any
) -> list[dict[str, Any]]:
    """The report's videos: of each shown prompt one per arm, all from the same noise."""
    geometry = bench.trained.teacher.geometry
    enlarge = media.viewing_factor(geometry.height, geometry.width)
    found = []
    for number, (name, split) in enumerate(bench.splits.items()):
        places = bench.shown[name]
        numbers = {place: video_seed(bench.asked.seeds[0], number, place) for place in places}
        for place in places:
            found.append({"prompt": split[place].text, "split": name, "seed": numbers[place], "panes": []})
        for arm in arms:
            if arm.name in measured:
                videos = measured[arm.name][name].kept
            else:
                videos = {}
                for start in range(0, len(places), bench.asked.batch):
                    some = places[start : start + bench.asked.batch]
                    made = arm.make([split[p].text for p in some], [numbers[p] for p in some]).cpu()
                    videos |= dict(zip(some, made, strict=True))
                    advance(len(some))
            for place, entry in zip(places, found[len(found) - len(places) :], strict=True):
                file = Path("videos") / f"{number}{place:02d}-{arm.name}.mp4"
                about = {"prompt": entry["prompt"], "seed": entry["seed"], **arm.about()}
                media.write_video(
                    bench.trained.results / file, videos[place], fps=geometry.fps, enlarge=enlarge, metadata=about
                )
                entry["panes"].append({"row": arm.name, "label": arm.label, "file": str(file)})
    return found


def machine(device: torch.device) -> str:
    """What it ran on, e.g. "NVIDIA H200" or "x86_64 CPU, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {device.type.upper()}, {torch.get_num_threads()} threads"
