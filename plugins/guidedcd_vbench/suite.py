"""The suite `vbench`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import ClassVar

from guidedcd.documents import parse_json
from guidedcd.errors import GuidedCDError, suggest
from guidedcd.evaluation.suites.contract import OfficialCommand, PublishedRow, Suite, SuiteVideo
from guidedcd_vbench import VBenchConfig
from guidedcd_vbench.dimensions import (
    BY_NAME,
    DIMENSIONS,
    OF_OTHER_VERSIONS,
    QUALITY_HALF,
    SCORES,
    SEMANTIC_HALF,
    VBenchDimension,
)
from guidedcd_vbench.prompts import COUNTS, FLICKER, read_lists, videos_of, warn_about_counts


class VBench(Suite):
    """VBench 1.0: 16 dimensions, 946 prompts, 5 videos for each and 25 for temporal flickering."""

    title: ClassVar = "VBench"
    dimensions: ClassVar = DIMENSIONS
    scores: ClassVar = SCORES
    tables: ClassVar = (QUALITY_HALF, SEMANTIC_HALF)
    other_versions: ClassVar[Mapping[str, Sequence[str]]] = OF_OTHER_VERSIONS

    def __init__(self, config: VBenchConfig) -> None:
        """Keep the options.

        Raises:
            GuidedCDError: A dimension that does not exist.
        """
        for name in config.dimensions:
            if name not in BY_NAME:
                raise GuidedCDError(f"VBench has no dimension '{name}'.{suggest(name, BY_NAME)}")
        self.config = config

    def chosen(self) -> list[VBenchDimension]:
        """The dimensions that the options name, or all."""
        return [one for one in DIMENSIONS if not self.config.dimensions or one.name in self.config.dimensions]

    def videos(self) -> Sequence[SuiteVideo]:
        """The videos of the chosen dimensions: 5 of each prompt, 25 of those of temporal flickering."""
        lists = read_lists(self.config.prompts, sorted({one.prompts for one in self.chosen()}, key=list(COUNTS).index))
        warn_about_counts(lists)
        return videos_of(lists, flat=self.config.layout == "flat")

    def commands(self, videos: Path) -> Sequence[OfficialCommand]:
        """One call of `vbench evaluate` for each chosen dimension, after the static filter for temporal flickering.

        Raises:
            GuidedCDError: VBench cannot read this folder, whose path it passes to a shell.
        """
        if wrong := sorted(set('"$`\\') & set(str(videos))):
            raise GuidedCDError(
                f"VBench cannot read {videos}, whose path has {' and '.join(wrong)}. Give another --out."
            )
        return [self._command(dimension, videos) for dimension in self.chosen()]

    def _command(self, dimension: VBenchDimension, videos: Path) -> OfficialCommand:
        folder = str(videos if self.config.layout == "flat" else videos / dimension.prompts)
        calls: list[tuple[str, ...]] = []
        program = self.config.program
        if "/" in program:  # it runs in another folder
            program = str(Path(program).expanduser().absolute())
        if dimension.name == FLICKER:
            calls.append((program, "static_filter", "--videos_path", folder))
            folder = "filter_results/filtered_videos"
        options = ("--videos_path", folder, "--dimension", dimension.name, "--output_path", "results")
        calls.append((program, "evaluate", *options))
        return OfficialCommand(
            dimension=dimension.name,
            calls=tuple(calls),
            results="results/*_eval_results.json",
            timeout=self.config.timeout,
            advice="Install VBench in its own environment, and give --suite.vbench.program ENVIRONMENT/bin/vbench.",
        )

    def published(self) -> Sequence[PublishedRow]:
        """The rows of the tables of T2V-Turbo-v2, those of Table 11 first."""
        return published_rows()


@cache
def published_rows() -> tuple[PublishedRow, ...]:
    """The rows of `published.json`."""
    text = (resources.files("guidedcd_vbench") / "published.json").read_text(encoding="utf-8")
    return tuple(PublishedRow(**row) for row in parse_json(text, "published.json")["rows"])
