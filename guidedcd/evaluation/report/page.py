"""One page that tells a run: what was asked, what came out, and how it went. Everything is inside the one HTML file.

The page is complete without JavaScript, which only plays the videos together; it asks for nothing over a network.
"""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from guidedcd.errors import GuidedCDError
from guidedcd.evaluation import tables
from guidedcd.evaluation.report.charts import line_chart
from guidedcd.evaluation.report.score_tables import cards, choices, score_tables
from guidedcd.evaluation.report.videos import player, shots, validated
from guidedcd.files import read_json, replacing
from guidedcd.training.log import read_log
from guidedcd.version import __version__

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "open_clip_torch", "peft")


def write_report(folder: Path, *, out: Path | None = None) -> Path:
    """Write the report of a run from run.json, log.jsonl, evaluation.json and videos/; what is missing is left out.

    Args:
        folder: The run's folder.
        out: The HTML file, by default report.html in the folder.

    Returns:
        The HTML file.

    Raises:
        GuidedCDError: The folder holds no run, or a file in it is damaged.
    """
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        raise GuidedCDError(f"{folder} is no run folder: it has no run.json.")
    run = read_json(folder / "run.json")
    log = read_log(folder / "log.jsonl")
    evaluation = read_json(folder / "evaluation.json") if (folder / "evaluation.json").is_file() else None
    out = Path(out) if out else folder / "report.html"
    with replacing(out) as part:
        part.write_text(page(folder, run, log, evaluation), encoding="utf-8")
    return out


def page(
    folder: Path, run: Mapping[str, Any], log: Sequence[Mapping[str, Any]], evaluation: Mapping[str, Any] | None
) -> str:
    """The whole HTML document."""
    name = str(run.get("name", folder.name))
    sections = [
        _section("Videos", _videos(folder, evaluation)),
        _section("Evaluation", _evaluation(evaluation, folder)),
        _section("Training", _training(log)),
        _section("Videos while training", validated(folder)),
        _section("Model card of the teacher", cards(evaluation) if evaluation else ""),
        _section("Configuration", _configuration(run)),
        _section("Environment", _environment(run, evaluation)),
    ]
    files = resources.files(__package__)
    style = (files / "style.css").read_text(encoding="utf-8")
    script = (files / "player.js").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(name)} - guidedcd report</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{escape(name)}</h1>\n{_lead(folder, run, log)}\n</header>\n"
        f"<main>\n{_summary(evaluation)}\n{''.join(sections)}</main>\n"
        f"<footer>Written by guidedcd {escape(__version__)}; loads nothing from elsewhere.</footer>\n"
        f"<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _section(title: str, content: str) -> str:
    if not content:
        return ""
    name = title.lower().replace(" ", "-")
    return f'<section aria-labelledby="{name}">\n<h2 id="{name}">{escape(title)}</h2>\n{content}\n</section>\n'


def _lead(folder: Path, run: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> str:
    """One line about the run, and its command."""
    teacher = ", ".join(run.get("teacher", {}))
    data = ", ".join(name for one in run.get("data", ()) for name in one)
    parts = [f"teacher {teacher}", f"data {data}"]
    for key, word in (("energy", "energy"), ("rewards", "rewards"), ("routes", "routes")):
        parts.append(f"{word} {', '.join(run.get(key) or {}) or 'none'}")
    if log:
        parts.append(f"{log[-1]['step']} steps")
        if "seconds" in log[-1]:
            parts.append(f"{_duration(log[-1]['seconds'])} of training")
    said = escape(" · ".join(parts))
    return f'<p class="soft">{said}</p>\n<pre class="command"><code>{escape(command(folder, run))}</code></pre>'


def command(folder: Path, run: Mapping[str, Any]) -> str:
    """The command that makes this run: the one that was typed if it is known, else the equivalent with its run.json."""
    typed = run.get("command")
    if isinstance(typed, str):
        return typed
    if isinstance(typed, list) and typed:
        return shlex.join(map(str, typed))
    return f"guidedcd train --config {shlex.quote(str(folder / 'run.json'))} --new"


def _summary(evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is None:
        return '<p class="summary">This run has not been evaluated yet.</p>'
    return f'<p class="summary">{escape(evaluation.get("summary") or tables.summary(evaluation))}</p>'


def _videos(folder: Path, evaluation: Mapping[str, Any] | None) -> str:
    found = shots(folder, evaluation["videos"]) if evaluation and evaluation.get("videos") else ""
    if not found:
        return ""
    said = "In each row all videos start from the same noise. The student's are neither chosen nor tuned by hand."
    return f"<p>{said}</p>\n{player(folder, evaluation['videos'])}\n{found}"


def _evaluation(evaluation: Mapping[str, Any] | None, folder: Path) -> str:
    if evaluation is None:
        return f"<p>Not measured yet: <code>guidedcd evaluate {escape(shlex.quote(str(folder)))}</code></p>"
    return score_tables(evaluation) + choices(evaluation)


def _training(log: Sequence[Mapping[str, Any]]) -> str:
    """Curves of everything that the log has numbers of."""
    if not log:
        return "<p>There is no training log.</p>"

    def series(keys: Mapping[str, str]) -> dict[str, list[tuple[float, float]]]:
        found = {
            name: [(line["step"], line[key]) for line in log if isinstance(line.get(key), int | float)]
            for name, key in keys.items()
        }
        return {name: points for name, points in found.items() if points}

    rewards = {key.removeprefix("reward/"): key for line in log for key in line if key.startswith("reward/")}
    routed = {key.removeprefix("routed/"): key for line in log for key in line if key.startswith("routed/")}
    losses = series({"total": "loss", "consistency": "cd_loss"})
    if losses.get("total") == losses.get("consistency"):
        losses.pop("total", None)
    charts = [
        line_chart("Loss", losses),
        *(line_chart(f"Reward {name} (higher is better)", series({name: key})) for name, key in rewards.items()),
        line_chart("Norm of the gradient", series({"norm": "grad_norm"})),
        line_chart("Share of samples that each reward scored", series(routed)),
        line_chart("Samples per second", series({"speed": "samples_per_second"})),
        line_chart("GPU memory, GB", series({"memory": "memory_gb"})),
    ]
    return f'<div class="charts">\n{"".join(chart for chart in charts if chart)}</div>'


def _configuration(run: Mapping[str, Any]) -> str:
    text = json.dumps({k: v for k, v in run.items() if k != "command"}, indent=1, ensure_ascii=False)
    return f"<details>\n<summary>run.json, every option</summary>\n<pre><code>{escape(text)}</code></pre>\n</details>"


def _environment(run: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> str:
    rows = {
        "guidedcd, training": run.get("guidedcd", "unknown"),
        "guidedcd, this report": __version__,
        "evaluated on": (evaluation or {}).get("machine", "not evaluated"),
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        **{name: _version(name) for name in PACKAGES},
    }
    body = "".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(str(v))}</td></tr>' for k, v in rows.items())
    return f'<table class="plain"><caption>Where this was written</caption><tbody>{body}</tbody></table>'


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if minutes < 120 else f"{seconds / 3600:.1f} h"
