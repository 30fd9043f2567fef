"""Run folders: which one a command continues or starts, and its log. No torch."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guidedcd.config.kinds import KINDS
from guidedcd.config.run import Run
from guidedcd.config.sources import ALIASES, Layer
from guidedcd.console import console
from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError
from guidedcd.files import check_writable, difference, digest, write_json
from guidedcd.locks import locked
from guidedcd.plugins import objects

RUNS = Path("runs")


RESULTS = ("student/student.json", "evaluation.json", "report.html")
"""What a training run leaves: a folder that has all of it is finished. A report alone may be of an unfinished run."""


def run_folder(run: Run, out: Path | None, *, new: bool) -> Path:
    """The folder of `run`: the one given, the newest unfinished one of the same configuration, or a new one.

    Nothing is written yet: a command that fails early leaves no folder behind.

    Raises:
        GuidedCDError: `out` holds a run of another configuration, or something else, or cannot be written.
    """
    described = run.to_dict()
    if out is not None:
        if (out / "run.json").exists():
            found = read_json(out / "run.json", {})
            if not _same(found, described):
                _same_objects(out, run, found)
                Layer.of_file(found, str(out / "run.json"))  # an old name of an option gets its own sentence
                other = difference(_essence(found), _essence(described))
                raise GuidedCDError(f"{out} holds a run with another configuration ({other}). Choose another --out.")
            if new:
                raise GuidedCDError(f"--new starts a new run, but {out} holds one already. Choose another --out.")
        elif out.is_dir() and any(not entry.name.startswith(".") for entry in out.iterdir()):
            raise GuidedCDError(f"{out} is not empty and is no run folder. Choose another --out.")
        check_writable(out)
        return out
    check_writable(RUNS)
    if not new and (folder := _unfinished(described)):
        return folder
    date, number = datetime.date.today().isoformat(), 1
    while (folder := RUNS / (f"{date}-{run.name}" + (f"-{number}" if number > 1 else ""))).exists():
        number += 1
    return folder


def _same_objects(folder: Path, run: Run, found: Any) -> None:
    """Name the Python object whose source is another than when the run began.

    Raises:
        GuidedCDError: There is one.
    """
    key_of = {kind: key for key, kind in KINDS.items()}
    for kind in objects.KINDS:
        before = found.get(key_of[kind], {}) if isinstance(found, dict) else {}
        for chosen in run.chosen(kind):
            recorded = before.get(chosen.name) if isinstance(before, dict) else None
            digest_now = getattr(chosen.config, "source_digest", None)
            if digest_now and isinstance(recorded, dict) and recorded.get("source_digest") not in (None, digest_now):
                raise GuidedCDError(
                    f"{folder}: {kind} '{chosen.name}' ({getattr(chosen.config, objects.MARK)}) has changed since "
                    "this run began. Restore its source, recorded in run.json, or choose another --out."
                )


def _unfinished(described: dict[str, Any]) -> Path | None:
    """The newest unfinished run of this configuration; folders that cannot be read are no concern of ours."""
    newest: list[tuple[float, Path]] = []
    for path in RUNS.glob("*/run.json"):
        with contextlib.suppress(GuidedCDError, OSError):
            if not finished(path.parent) and _same(read_json(path), described):
                newest.append((path.stat().st_mtime, path.parent))
    return max(newest)[1] if newest else None


def finished(folder: Path) -> bool:
    """Whether a run has left all its results."""
    return all((folder / name).exists() for name in RESULTS)


@contextlib.contextmanager
def claimed(run: Run, out: Path | None, *, new: bool, command: str | None = None) -> Iterator[Path]:
    """Hold the run's folder as its only writer, with its run.json in it.

    Two runs that started together may have seen the same name free: the second one to come then takes another.

    Raises:
        GuidedCDError: As `run_folder`, or another process writes this very run.
    """
    folder = run_folder(run, out, new=new)
    while True:
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(folder, "the run"))
                begun = (folder / "run.json").exists()
                other = run_folder(run, out, new=new) if begun else folder
            except GuidedCDError:
                if (other := run_folder(run, out, new=new)) == folder:
                    raise
            if other == folder:
                if begun and not finished(folder):
                    console.print(f"run      continuing {folder} (--new starts another)")
                if not begun:
                    write_json(folder / "run.json", ({"command": command} if command else {}) | run.to_dict())
                yield folder
                return
        folder = other


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs would compute the same; the version that wrote them and the command line do not count."""
    return isinstance(one, dict) and digest(_essence(one)) == digest(_essence(other))


def _essence(described: dict[str, Any]) -> dict[str, Any]:
    """What the results of a run depend on; the key `energy` of older files is `energies`."""
    return {ALIASES.get(k, k): v for k, v in described.items() if k not in ("guidedcd", "command", "device")}
