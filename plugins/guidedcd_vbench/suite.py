"""The suite `vbench`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import ClassVar

from guidedcd.documents import parse_json
from guidedcd.evaluation.suites.contract import PublishedRow, Suite
from guidedcd_vbench.dimensions import DIMENSIONS, OF_OTHER_VERSIONS, QUALITY_HALF, SCORES, SEMANTIC_HALF


class VBench(Suite):
    """VBench 1.0: 16 dimensions, 946 prompts, 5 videos for each and 25 for temporal flickering."""

    title: ClassVar = "VBench"
    dimensions: ClassVar = DIMENSIONS
    scores: ClassVar = SCORES
    tables: ClassVar = (QUALITY_HALF, SEMANTIC_HALF)
    other_versions: ClassVar[Mapping[str, Sequence[str]]] = OF_OTHER_VERSIONS

    def published(self) -> Sequence[PublishedRow]:
        """The rows of the tables of T2V-Turbo-v2, those of Table 11 first."""
        return published_rows()


@cache
def published_rows() -> tuple[PublishedRow, ...]:
    """The rows of `published.json`."""
    text = (resources.files("guidedcd_vbench") / "published.json").read_text(encoding="utf-8")
    return tuple(PublishedRow(**row) for row in parse_json(text, "published.json")["rows"])
