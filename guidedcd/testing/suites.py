"""The rules of suites."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from unittest import SkipTest

from guidedcd.errors import GuidedCDError

if TYPE_CHECKING:
    from guidedcd.testing.checked_component import CheckedComponent


def suite_describes_itself(checked: CheckedComponent) -> None:
    """Its dimensions have distinct names and ranges, and its tables and published rows name them and its scores."""
    suite = checked.built
    names = [one.name for one in (*suite.dimensions, *suite.scores)]
    assert suite.dimensions, "it has no dimensions"
    assert len(set(names)) == len(names), f"several dimensions or scores have one name: {names}"
    for dimension in suite.dimensions:
        assert dimension.low < dimension.high, f"the range of {dimension.name} is empty"
    columns = [key for table in suite.tables for key in table]
    _are_known(columns, names, "`tables` has columns")
    for row in suite.published():
        for keys in (row.misprints, row.corrected):
            _are_known(list(keys), list(row.values), f"row {row.id} corrects")


def suite_scores_need_what_they_state(checked: CheckedComponent) -> None:
    """Each score is a finite number of exactly the dimensions that it needs."""
    suite = checked.built
    middle = {one.name: (one.low + one.high) / 2 for one in suite.dimensions}
    for score in suite.scores:
        _are_known(list(score.needs), list(middle), f"score {score.name} needs")
        try:
            value = score.formula({name: middle[name] for name in score.needs})
        except KeyError as error:
            raise AssertionError(f"score {score.name} reads {error}, which it does not state as a need") from error
        assert isinstance(value, float) and math.isfinite(value), f"score {score.name} is {value!r}"


def suite_reads_its_results(checked: CheckedComponent) -> None:
    """`parse` reads a JSON object of its dimensions."""
    suite = checked.built
    values = {one.name: (one.low + one.high) / 2 for one in suite.dimensions}
    content = dict(suite.parse("results.json", json.dumps(values)))
    assert content == values, f"`parse` returns {content!r} for {values!r}"


def suite_names_its_videos(checked: CheckedComponent) -> None:
    """Its videos have distinct files inside their folder, distinct numbers, and a prompt each."""
    try:
        videos = checked.built.videos()
    except GuidedCDError as error:
        raise SkipTest(f"it has no prompts: {error}") from error
    files = [video.file for video in videos]
    outside = [file for file in files if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts]
    assert not outside, f"these files lie outside of the folder of videos: {outside[:3]}"
    assert len(set(files)) == len(files), "several videos have the same file"
    assert len({video.number for video in videos}) == len(videos), "several videos have the same number"
    assert all(video.prompt.strip() for video in videos), "a video has no prompt"


def _are_known(names: Sequence[str], known: Sequence[str], what: str) -> None:
    unknown = sorted(set(names) - set(known))
    assert not unknown, f"{what} {unknown}, which do not exist"


RULES = [
    suite_describes_itself,
    suite_scores_need_what_they_state,
    suite_reads_its_results,
    suite_names_its_videos,
]
