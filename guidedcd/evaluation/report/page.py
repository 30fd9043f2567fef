"""The report of a run, one HTML file: options, results and training.

The page loads no external resources. JavaScript only plays the videos together.
"""

from __future__ import annotations

import json
import platform
import shlex
import statistics
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from guidedcd import __version__
from guidedcd.console import duration
from guidedcd.evaluation import tables
from guidedcd.evaluation.report.charts import short
from guidedcd.evaluation.report.checks import checks
from guidedcd.evaluation.report.components import components
from guidedcd.evaluation.report.curves import charts
from guidedcd.evaluation.report.health import health
from guidedcd.evaluation.report.run_files import RunFiles
from guidedcd.evaluation.report.score_tables import choice, model_card, scores
from guidedcd.evaluation.report.template import rendered
from guidedcd.evaluation.report.videos import clock, shots, validated
from guidedcd.files import replacing
from guidedcd.training.log import SHARE

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "open_clip_torch", "peft")


def write_report(folder: str | Path, *, out: Path | None = None, results: Path | None = None) -> Path:
    """Write the report of a run from run.json, log.jsonl, evaluation.json and videos/; missing files are left out.

    Args:
        folder: The run's folder.
        out: The HTML file, by default report.html beside the evaluation.
        results: The folder of the evaluation, by default the run's; that of a checkpoint is a folder in it.

    Returns:
        The HTML file.

    Raises:
        GuidedCDError: The folder contains no run, or a file in it is damaged.
    """
    files = RunFiles.read(folder, results)
    out = Path(out) if out else files.results / "report.html"
    with replacing(out) as partial:
        partial.write_text(page(files), encoding="utf-8", errors="backslashreplace")
    return out


def page(files: RunFiles) -> str:
    """The HTML document."""
    folder, run, log, evaluation = files.folder, files.run, files.log, files.evaluation
    videos = evaluation.get("videos") or [] if evaluation else []
    return rendered(
        "report.html.j2",
        name=files.name,
        facts=_facts(run, log),
        command=command(folder, run),
        summary=evaluation and (evaluation.get("summary") or tables.summary(evaluation)),
        videos=shots(files.results, videos),
        clock=clock(files.results, videos),
        scores=evaluation and scores(evaluation),
        choice=evaluation and choice(evaluation),
        evaluate_command=f"guidedcd evaluate {shlex.quote(str(folder))}",
        logged=bool(log),
        charts=charts(log),
        health=health(files),
        components=components(files),
        validation=validated(folder),
        checks=checks(folder),
        model_card=evaluation and model_card(evaluation),
        configuration=json.dumps({k: v for k, v in run.items() if k != "command"}, indent=1, ensure_ascii=False),
        environment=_environment(run, evaluation),
    )


def _facts(run: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> list[str]:
    """Teacher, data, components, steps and duration of the run."""
    teacher = ", ".join(run.get("teacher", {}))
    data = ", ".join(name for one in run.get("data", ()) for name in one)
    facts = [f"teacher {teacher}", f"data {data}"]
    for key in ("energies", "rewards", "routes"):
        names = run.get(key) or (run.get("energy") if key == "energies" else None)  # older runs
        texts = [name + (_share(name, log) if key == "energies" else "") for name in names or {}]
        facts.append(f"{key} {', '.join(texts) or 'none'}")
    if log:
        facts.append(f"{log[-1]['step']:,} training steps")
        if "seconds" in log[-1]:
            facts.append(f"{duration(log[-1]['seconds'])} of training")
    return facts


def _share(name: str, log: Sequence[Mapping[str, Any]]) -> str:
    """An energy's median share of the prediction in the log, in brackets, or ""."""
    values = [line[f"{SHARE}{name}"] for line in log if isinstance(line.get(f"{SHARE}{name}"), int | float)]
    return f" ({short(100 * float(f'{statistics.median(values):.2g}'))} % of the prediction)" if values else ""


def command(folder: Path, run: Mapping[str, Any]) -> str:
    """The command of this run: the one that started it, else an equivalent one with its run.json."""
    typed = run.get("command")
    if isinstance(typed, str):
        return typed
    if isinstance(typed, list) and typed:
        return shlex.join(map(str, typed))
    return f"guidedcd train --config {shlex.quote(str(folder / 'run.json'))} --new"


def _environment(run: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "guidedcd, of the training": run.get("guidedcd", "unknown"),
        "guidedcd, of this report": __version__,
        "evaluated on": (evaluation or {}).get("machine", "not evaluated"),
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        **{name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
