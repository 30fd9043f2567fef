"""The report of a run, one HTML file: options, results and training.

The page loads no external resources. JavaScript only plays the videos together.
"""

from __future__ import annotations

import json
import platform
import shlex
import statistics
from collections.abc import Mapping, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from guidedcd import __version__
from guidedcd.console import duration
from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError
from guidedcd.evaluation import tables
from guidedcd.evaluation.report.charts import Chart, line_chart
from guidedcd.evaluation.report.checks import checks
from guidedcd.evaluation.report.score_tables import choice, model_card, scores
from guidedcd.evaluation.report.videos import clock, shots, validated
from guidedcd.files import replacing
from guidedcd.training.log import BY_NOISE, SHARE, read_log

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "open_clip_torch", "peft")

RUN = {
    "name?": str,
    "guidedcd?": str,
    "command?": (str, [str]),
    "teacher?": {str: {}},
    "data?": [{str: {}}],
    "energies?": {str: {}},
    "energy?": {str: {}},
    "rewards?": {str: {}},
    "routes?": {str: {}},
}
"""Form of the keys of run.json that the report reads; see `guidedcd.documents`."""


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
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        raise GuidedCDError(f"{folder} is no run folder: it has no run.json.")
    run = read_json(folder / "run.json", RUN)
    log = read_log(folder / "log.jsonl")
    results = results or folder
    evaluation = tables.read_if_there(results)
    out = Path(out) if out else results / "report.html"
    with replacing(out) as partial:
        partial.write_text(page(folder, run, log, evaluation, results), encoding="utf-8", errors="backslashreplace")
    return out


def page(
    folder: Path,
    run: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None,
    results: Path,
) -> str:
    """The HTML document; arguments as in `write_report`."""
    files = resources.files(__package__)
    template = Environment(autoescape=True, trim_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True)
    videos = evaluation.get("videos") or [] if evaluation else []
    return template.from_string((files / "report.html.j2").read_text(encoding="utf-8")).render(
        name=run.get("name", folder.name),
        facts=_facts(run, log),
        command=command(folder, run),
        summary=evaluation and (evaluation.get("summary") or tables.summary(evaluation)),
        videos=shots(results, videos),
        clock=clock(results, videos),
        scores=evaluation and scores(evaluation),
        choice=evaluation and choice(evaluation),
        evaluate_command=f"guidedcd evaluate {shlex.quote(str(folder))}",
        logged=bool(log),
        charts=_charts(log),
        validation=validated(folder),
        checks=checks(folder),
        model_card=evaluation and model_card(evaluation),
        configuration=json.dumps({k: v for k, v in run.items() if k != "command"}, indent=1, ensure_ascii=False),
        environment=_environment(run, evaluation),
        version=__version__,
        style=Markup((files / "style.css").read_text(encoding="utf-8")),
        script=Markup((files / "player.js").read_text(encoding="utf-8")),
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
    return f" ({100 * statistics.median(values):.2g} % of the prediction)" if values else ""


def command(folder: Path, run: Mapping[str, Any]) -> str:
    """The command of this run: the one that started it, else an equivalent one with its run.json."""
    typed = run.get("command")
    if isinstance(typed, str):
        return typed
    if isinstance(typed, list) and typed:
        return shlex.join(map(str, typed))
    return f"guidedcd train --config {shlex.quote(str(folder / 'run.json'))} --new"


def _charts(log: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Charts of the numbers in the log."""

    def series(keys: Mapping[str, str]) -> dict[str, list[tuple[float, float]]]:
        curves = {
            name: [(line["step"], line[key]) for line in log if isinstance(line.get(key), int | float)]
            for name, key in keys.items()
        }
        return {name: points for name, points in curves.items() if points}

    rewards = {key.removeprefix("reward/"): key for line in log for key in line if key.startswith("reward/")}
    routed = {key.removeprefix("routed/"): key for line in log for key in line if key.startswith("routed/")}
    shares = {key.removeprefix(SHARE): key for line in log for key in line if key.startswith(SHARE)}
    levels = {
        key.removeprefix(BY_NOISE): key for key in sorted({k for line in log for k in line}) if key.startswith(BY_NOISE)
    }
    losses = series({"total": "loss", "consistency": "cd_loss"})
    if losses.get("total") == losses.get("consistency"):
        losses.pop("total", None)
    charts = [
        line_chart("Loss", losses),
        line_chart("Consistency loss by noise level (1 is the cleanest quarter)", series(levels)),
        *(line_chart(f"Reward {name} (higher is better)", series({name: key})) for name, key in rewards.items()),
        line_chart("Energy's guided term relative to the prediction", series(shares)),
        line_chart("Norm of the gradient", series({"norm": "grad_norm"})),
        line_chart("Share of samples that each reward scored", series(routed)),
        line_chart("Samples per second", series({"speed": "samples_per_second"})),
        line_chart("GPU memory, GB", series({"memory": "memory_gb"})),
    ]
    return [chart for chart in charts if chart]


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
