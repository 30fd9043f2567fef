"""The videos of the report, embedded as data URIs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from guidedcd.data import media
from guidedcd.documents import read_json

Entries = Sequence[Mapping[str, Any]]


@attrs.frozen
class Pane:
    """One video."""

    label: str
    source: str
    """The mp4 as a data URI."""
    student: bool
    """Whether it is a video of the student."""


@attrs.frozen
class Shot:
    """The videos of one prompt."""

    prompt: str
    panes: list[Pane]


@attrs.frozen
class Clock:
    """Number and rate of the frames, for the control of all videos."""

    frames: int
    fps: str


def shots(folder: Path, entries: Entries) -> list[Shot]:
    """One figure per prompt with a video of each arm; missing files are left out."""
    figures = [Shot(entry["prompt"], _panes(folder, entry["panes"])) for entry in entries]
    return [figure for figure in figures if figure.panes]


def validated(folder: Path, columns: int = 6) -> list[Shot]:
    """One figure per validation prompt with at most `columns` videos, in the order of training."""
    steps = sorted((folder / "validation").glob("step-*"), key=lambda path: path.name.rjust(30))
    if len(steps) > columns:
        steps = [steps[round(i * (len(steps) - 1) / (columns - 1))] for i in range(columns)]
    entries: dict[str, dict[str, Any]] = {}
    for path in (video for step in steps for video in sorted(step.glob("*.mp4"))):
        if media.sidecar(path).is_file():
            about = read_json(media.sidecar(path), {**media.METADATA, "prompt": str, "step": int})
            pane = {"row": "validation", "label": f"step {about['step']}", "file": str(path.relative_to(folder))}
            entries.setdefault(about["prompt"], {"prompt": about["prompt"], "panes": []})["panes"].append(pane)
    return shots(folder, list(entries.values()))


def inside(folder: Path, name: str) -> Path | None:
    """The file `name` of a run, or None outside of the run's folder, since reports are sent to others."""
    try:
        path = (folder / name).resolve()
        return path if path.is_relative_to(folder.resolve()) and path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, or a loop of links
        return None


def _panes(folder: Path, panes: Entries) -> list[Pane]:
    return [
        Pane(
            label=pane["label"],
            source=media.data_uri(path.read_bytes(), "video/mp4"),
            student=pane["row"] == "student",
        )
        for pane in panes
        if (path := inside(folder, pane["file"])) is not None
    ]


def clock(folder: Path, entries: Entries) -> Clock | None:
    """Number and rate of the frames of every video, from the first one that has a sidecar file."""
    for path in (inside(folder, pane["file"]) for entry in entries for pane in entry["panes"]):
        if path is not None and media.sidecar(path).is_file():
            about = read_json(media.sidecar(path), {**media.METADATA, "frames": int, "fps": float})
            return Clock(frames=int(about["frames"]), fps=f"{float(about['fps']):g}")
    return None
