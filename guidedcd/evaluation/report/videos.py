"""The report's videos: embedded, side by side, with one control for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from guidedcd.data import media
from guidedcd.files import read_json

Entries = Sequence[Mapping[str, Any]]


def shots(folder: Path, entries: Entries) -> str:
    """A figure per prompt with a video of each way of making it; files that are gone are left out."""
    found = []
    for entry in entries:
        panes = [_pane(folder / pane["file"], pane, entry["prompt"]) for pane in entry["panes"]]
        panes = [pane for pane in panes if pane]
        if panes:
            found.append(
                f'<figure class="shot"><figcaption>{escape(entry["prompt"])}</figcaption>'
                f'<div class="panes">{"".join(panes)}</div></figure>'
            )
    return f'<div class="shots">\n{"".join(found)}</div>' if found else ""


def validated(folder: Path, columns: int = 6) -> str:
    """A figure per validation prompt with its videos in the order of training, at most `columns` of them."""
    steps = sorted((folder / "validation").glob("step-*"), key=lambda path: path.name.rjust(30))
    if len(steps) > columns:
        steps = [steps[round(i * (len(steps) - 1) / (columns - 1))] for i in range(columns)]
    entries: dict[str, dict[str, Any]] = {}
    for path in (video for step in steps for video in sorted(step.glob("*.mp4"))):
        if media.sidecar(path).is_file():
            about = read_json(media.sidecar(path))
            pane = {"row": "validation", "label": f"step {about['step']}", "file": str(path.relative_to(folder))}
            entries.setdefault(about["prompt"], {"prompt": about["prompt"], "panes": []})["panes"].append(pane)
    return shots(folder, list(entries.values()))


def _pane(path: Path, pane: Mapping[str, Any], prompt: str) -> str:
    if not path.is_file():
        return ""
    source = media.data_uri(path.read_bytes(), "video/mp4")
    said = escape(f"{pane['label']}: {prompt}")
    ours = ' class="ours"' if pane["row"] == "student" else ""
    return (
        f'<figure{ours}><video controls loop muted playsinline preload="auto" aria-label="{said}" src="{source}">'
        f"{said}</video><figcaption>{escape(pane['label'])}</figcaption></figure>"
    )


def player(folder: Path, entries: Entries) -> str:
    """The control of all videos; hidden until its script runs."""
    first = next(
        (
            folder / pane["file"]
            for e in entries
            for pane in e["panes"]
            if media.sidecar(folder / pane["file"]).is_file()
        ),
        None,
    )
    if first is None:
        return ""
    about = read_json(media.sidecar(first))
    return (
        f'<div class="player" data-frames="{int(about["frames"])}" data-fps="{float(about["fps"]):g}" hidden>'
        '<button type="button">Play all</button>'
        '<input type="range" min="0" max="0" value="0" step="1" aria-label="frame of all videos">'
        "<output></output></div>"
    )
