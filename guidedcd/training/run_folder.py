"""Run folders: the one that a command continues or starts. No torch."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guidedcd.config.kinds import KINDS
from guidedcd.config.merge import inside
from guidedcd.config.resolve import run_from_dict
from guidedcd.config.run import Run
from guidedcd.config.sources import ALIASES, Layer
from guidedcd.console import console
from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError
from guidedcd.files import check_writable, difference, digest, write_json
from guidedcd.locks import locked
from guidedcd.plugins import objects
from guidedcd.plugins.sources import changed, origin

RUNS = Path("runs")
"""The folder of all runs."""

RESULTS = ("student/student.json", "evaluation.json", "report.html")
"""The files of a finished run. A report alone may belong to an unfinished run."""


def run_folder(run: Run, out: Path | None, *, new: bool) -> Path:
    """The folder of `run`: `out`, the newest unfinished one with the same configuration, or a new name.

    Nothing is created, so a command that fails early leaves no folder behind.

    Args:
        run: The configuration.
        out: The folder that the user chose, or None.
        new: Never continue an unfinished run.

    Raises:
        GuidedCDError: `out` contains a run with another configuration, or other files, or is not writable.
    """
    described = run.to_dict()
    if out is not None:
        if (out / "run.json").exists():
            recorded = read_json(out / "run.json", {})
            if not _same(recorded, described):
                _same_objects(out, run, recorded)
                Layer.of_file(recorded, str(out / "run.json"))  # an old name of an option has its own error
                other = difference(_essence(_complete(recorded)), _essence(described))
                raise GuidedCDError(f"{out} holds a run with another configuration ({other}). Choose another --out.")
            if new:
                raise GuidedCDError(f"--new starts a new run, but {out} holds one already. Choose another --out.")
        elif out.is_dir() and any(not entry.name.startswith(".") for entry in out.iterdir()):
            raise GuidedCDError(f"{out} is not empty and is no run folder. Choose another --out.")
        check_writable(out)
        return out
    check_writable(RUNS)
    unfinished = None if new else _unfinished(described)
    if unfinished is not None:
        return unfinished
    date, number = datetime.date.today().isoformat(), 1
    while (folder := RUNS / (f"{date}-{run.name}" + (f"-{number}" if number > 1 else ""))).exists():
        number += 1
    return folder


def _same_objects(folder: Path, run: Run, recorded: Any) -> None:
    """Compare the sources of Python objects with those in run.json, parsed but not checked.

    Raises:
        GuidedCDError: The source of an object has changed.
    """
    key_of = {kind: key for key, kind in KINDS.items()}
    for kind in objects.KINDS:
        section = recorded.get(key_of[kind], {}) if isinstance(recorded, dict) else {}
        for chosen in run.chosen(kind):
            before = section.get(chosen.name) if isinstance(section, dict) else None
            digest_now = getattr(chosen.config, "source_digest", None)
            if digest_now and isinstance(before, dict) and before.get("source_digest") not in (None, digest_now):
                raise GuidedCDError(
                    f"{folder}: {kind} '{chosen.name}' ({getattr(chosen.config, objects.MARK)}) has changed since "
                    "this run began. Restore its source, recorded in run.json, or choose another --out."
                )


def _unfinished(described: dict[str, Any]) -> Path | None:
    """The newest unfinished run with this configuration; unreadable folders are skipped."""
    newest: list[tuple[float, Path]] = []
    for path in RUNS.glob("*/run.json"):
        with contextlib.suppress(GuidedCDError, OSError):
            if not finished(path.parent) and _same(read_json(path), described):
                newest.append((path.stat().st_mtime, path.parent))
    return max(newest)[1] if newest else None


def finished(folder: Path) -> bool:
    """Whether a run has written all its results."""
    return all((folder / name).exists() for name in RESULTS)


@contextlib.contextmanager
def claimed(run: Run, out: Path | None, *, new: bool, command: str | None = None) -> Iterator[Path]:
    """Lock the run's folder and write its run.json; yields the folder.

    Two runs that start together may choose the same new name; the second one to lock it then takes another name.

    Args:
        run: The configuration.
        out: The folder that the user chose, or None.
        new: Never continue an unfinished run.
        command: The command line, kept in run.json.

    Raises:
        GuidedCDError: As `run_folder`, or another process writes the same run.
    """
    folder, exists = run_folder(run, out, new=new), False
    while True:
        with contextlib.ExitStack() as locks:
            try:
                locks.enter_context(locked(folder, "the run"))
                exists = (folder / "run.json").exists()
                other = run_folder(run, out, new=new) if exists else folder
            except GuidedCDError:
                if (other := run_folder(run, out, new=new)) == folder:
                    raise
            if other == folder:
                if exists and not finished(folder):
                    console.print(f"run      continuing {folder} (--new starts another)")
                if not exists:  # first of all files, by which the folder is known as this run's
                    write_json(folder / "run.json", ({"command": command} if command else {}) | run.to_dict())
                if not (folder / "student" / "student.json").exists():
                    _record_sources(run, folder)
                yield folder
                return
        folder = other


def check_student(folder: Path) -> None:
    """Refuse a run whose trained student has lost its weights.

    Raises:
        GuidedCDError: There is a student without weights.
    """
    student = folder / "student"
    if (student / "student.json").is_file() and not (student / "model.safetensors").is_file():
        raise GuidedCDError(
            f"{student} has no model.safetensors. Restore the file, or delete the folder: the same command then "
            "continues from the newest checkpoint."
        )


SOURCES = "sources.json"
"""The versions and sources of a run's components, as of the last start of its training."""


def _record_sources(run: Run, folder: Path) -> None:
    """Print which components have changed since the run was last started, and record the present ones."""
    present: dict[str, dict[str, str]] = {}
    for kind in KINDS.values():
        for chosen in run.chosen(kind):
            with contextlib.suppress(GuidedCDError):  # a component that is not installed is an error of its own
                present[f"{kind} '{chosen.name}'"] = origin(chosen.component())
                if (inner := inside(chosen.config)) is not None:
                    present[f"{inner.kind} '{inner.name}' in {kind} '{chosen.name}'"] = origin(inner.component())
    path = folder / SOURCES
    recorded = read_json(path, {str: {"plugin": str, "version": str, "source": str}}) if path.exists() else {}
    changes = [changed(what, recorded[what], now) for what, now in present.items() if recorded.get(what, now) != now]
    if changes:
        text = f"since its last step, {' and '.join(changes)}; the run continues with the present code"
        console.print(f"run      {folder}: {text}", markup=False)
    if recorded != present:
        write_json(path, present)


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs would compute the same results; version and command line are ignored.

    Args:
        one: The content of a run.json; options that it lacks, because they did not exist yet, have their defaults.
        other: `Run.to_dict` of a run.
    """
    if not isinstance(one, dict):
        return False
    expected = digest(_essence(other))
    return digest(_essence(one)) == expected or digest(_essence(_complete(one))) == expected


def _complete(recorded: dict[str, Any]) -> dict[str, Any]:
    """The content of a run.json with the defaults of the options that it lacks; itself if it is no description of a run
    or has a component that is not installed."""
    with contextlib.suppress(GuidedCDError):
        return run_from_dict(recorded).to_dict()
    return recorded


def _essence(described: dict[str, Any]) -> dict[str, Any]:
    """The options that the results of a run depend on; the key `energy` of older files becomes `energies`.

    Sources of components, such as the files of `--plugin`, are none: a run continues with edited ones and states it.
    """
    others = ("guidedcd", "command", "device", "plugin_files")
    return {ALIASES.get(k, k): v for k, v in described.items() if k not in others}
