"""The benchmark's own program, in its own environment: one file of results for each dimension. No torch."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from guidedcd.console import console
from guidedcd.documents import read_json, read_text
from guidedcd.environments.command import last_line, run_command
from guidedcd.errors import GuidedCDError
from guidedcd.evaluation.suites.contract import OfficialCommand, Suite, SuiteVideo
from guidedcd.evaluation.suites.places import SuiteFolder
from guidedcd.evaluation.suites.results import dimension_name
from guidedcd.files import digest, replacing, write_json
from guidedcd.locks import locked

STATE = "videos.digest.json"
"""The file that names the videos that the results are of."""


def score_videos(suite: Suite, folder: SuiteFolder, videos: Sequence[SuiteVideo]) -> Path:
    """Score the dimensions that have no results of the present videos; returns the folder of results.

    Raises:
        GuidedCDError: Videos are missing, or the program is missing, fails, hangs, or writes no results.
    """
    folder.check_complete(videos)
    of_videos = _digest(folder, videos)
    with locked(folder.root, "the benchmark's folder", ".lock-results"):
        _drop_older(folder.results, of_videos)
        for command in suite.commands(folder.videos.resolve()):
            target = folder.results / f"{command.dimension}_eval_results.json"
            if target.is_file():
                console.print(f"suite    {command.dimension} is scored already", markup=False)
            else:
                _score(suite, command, folder, target)
    return folder.results


def _digest(folder: SuiteFolder, videos: Sequence[SuiteVideo]) -> str:
    """A digest of the names, sizes and times of all videos."""
    about = [(video.file, (path := folder.video(video)).stat().st_size, path.stat().st_mtime_ns) for video in videos]
    return digest(about)


def _drop_older(results: Path, of_videos: str) -> None:
    """Delete the results of other videos."""
    results.mkdir(parents=True, exist_ok=True)
    state = results / STATE
    if state.is_file() and read_json(state, {"videos": str})["videos"] == of_videos:
        return
    for file in results.glob("*_eval_results.json"):
        file.unlink()
    write_json(state, {"videos": of_videos})


def _score(suite: Suite, command: OfficialCommand, folder: SuiteFolder, target: Path) -> None:
    """Score one dimension in a folder of its own, and keep its file of results."""
    work = folder.root / "work" / command.dimension
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    what = f"{suite.title}, {command.dimension}"
    console.print(f"suite    {command.dimension}: {command.calls[-1][0]} runs, its output is in {work}", markup=False)
    for number, words in enumerate(command.calls):
        log = work / f"{number}.log"
        run_command(words, what=what, folder=work, log=log, timeout=command.timeout, advice=command.advice)
    files = sorted(work.glob(command.results))
    if not files:
        raise GuidedCDError(
            f"{what}: {command.calls[-1][0]} ended with status 0, but wrote no file {command.results}{last_line(log)}."
        )
    content = suite.parse(str(files[-1]), read_text(files[-1]))
    if command.dimension not in map(dimension_name, content):
        raise GuidedCDError(f"{what}: {files[-1]} has no value of this dimension.")
    with replacing(target) as partial:
        shutil.copyfile(files[-1], partial)
    shutil.rmtree(work, ignore_errors=True)
