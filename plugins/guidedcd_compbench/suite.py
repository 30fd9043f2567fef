"""The suite `t2v-compbench`: one value for each category, and the videos in the layout of its programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, ClassVar

from guidedcd.data.prompts import read
from guidedcd.errors import GuidedCDError, written
from guidedcd.evaluation.suites.contract import Dimension, PublishedRow, Suite, SuiteVideo

PROMPTS = 100
"""Prompts of each category, with one video each, in the first version of the benchmark, which the published rows of
T2V-Turbo-v2 use. The second version has 200."""
MOST = 1000
"""Prompts of a category at most: the seed of a video is 1000 times the number of its category, plus its place."""


def _category(name: str, title: str, high: float = 1.0) -> Dimension:
    return Dimension(name=name, group="categories", title=title, high=high, videos=PROMPTS)


CATEGORIES = {
    "consistent_attr": _category("consistent_attribute", "Consist-attr"),
    "dynamic_attr": _category("dynamic_attribute", "Dynamic-attr", high=0.8),
    "spatial_relationship": _category("spatial_relationship", "Spatial"),
    "motion_binding": _category("motion_binding", "Motion"),
    "action_binding": _category("action_binding", "Action"),
    "interaction": _category("object_interactions", "Interaction"),
    "numeracy": _category("generative_numeracy", "Numeracy"),
}
"""By the part of the names of official files, the category. Ratings from 1 to 5 limit dynamic attributes to 0.8."""


class CompBench(Suite):
    """T2V-CompBench: 7 categories with 100 prompts each, or 200 in its second version, and one video for each prompt.

    It has no score of all categories.
    """

    title: ClassVar = "T2V-CompBench"
    dimensions: ClassVar = tuple(CATEGORIES.values())
    patterns: ClassVar = ("*_score.csv", "*.csv", "*.json")

    def published(self) -> Sequence[PublishedRow]:
        """The rows of Table 4 of T2V-Turbo-v2."""
        values = {"w/o MG": (22.15, 72.73, 20.05), "w/ MG": (24.38, 74.60, 20.46)}
        return [
            PublishedRow(
                id="v2_nomg_vgwv" if label == "w/o MG" else "v2_mg_vgwv",
                label=f"T2V-Turbo-v2 {label}",
                table="Table 4",
                values=dict(zip(("motion_binding", "action_binding", "dynamic_attribute"), row, strict=True)),
            )
            for label, row in values.items()
        ]

    def parse(self, name: str, text: str) -> Mapping[str, Any]:
        """The value of the category that the name of an official CSV file has, or the values of a JSON file.

        Raises:
            GuidedCDError: The name has no category, or the file does not end with the line of the score.
        """
        if PurePath(name).suffix != ".csv":
            return super().parse(name, text)
        categories = [category for key, category in CATEGORIES.items() if key in PurePath(name).name.lower()]
        if len(categories) != 1:
            raise GuidedCDError(
                f"{name} has no category of T2V-CompBench in its name: it must contain one of {', '.join(CATEGORIES)}."
            )
        rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text)) if any(row)]
        if not rows or rows[-1][0].rstrip(":") != "score" or len(rows[-1]) < 2:
            raise GuidedCDError(
                f"{name} does not end with the line 'score: ,VALUE', so that its evaluation is unfinished."
            )
        try:
            value = float(rows[-1][1])
        except ValueError:
            raise GuidedCDError(f"{name}: the score {rows[-1][1]!r} is no number.") from None
        videos = rows[1:-1] if rows[0] and not _is_number(rows[0][-1]) else rows[:-1]
        return {categories[0].name: [value, videos]}

    def videos(self) -> Sequence[SuiteVideo]:
        """One video of each prompt, `CATEGORY/0001.mp4` and so on.

        Raises:
            GuidedCDError: The options name no folder of prompts, or a list is missing or has more than `MOST` prompts.
        """
        folder: Path | None = self.config.prompts
        if folder is None or not folder.is_dir():
            raise GuidedCDError(
                "the prompts of T2V-CompBench are needed: give "
                f"{written('--suite.t2v-compbench.prompts FOLDER')}, its folder of one text file for each category."
            )
        videos = []
        for number, key in enumerate(CATEGORIES):
            files = sorted(folder.glob(f"*{key}*.txt"))
            if len(files) != 1:
                count = f"{len(files)} files" if files else "no file"
                raise GuidedCDError(
                    f"{folder} has {count} *{key}*.txt; it must have one list of prompts of this category."
                )
            prompts = read(files[0])
            if len(prompts) > MOST:
                raise GuidedCDError(
                    f"{files[0]} has {len(prompts):,} prompts; a category of T2V-CompBench has at most {MOST:,}. "
                    "Shorten the list."
                )
            videos += [
                SuiteVideo(file=f"{files[0].stem}/{place:04d}.mp4", prompt=prompt.text, number=MOST * number + place)
                for place, prompt in enumerate(prompts, 1)
            ]
        return videos


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
