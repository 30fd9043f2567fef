"""The base class of suites, and what a suite consists of. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import attrs

from guidedcd.documents import parse_json
from guidedcd.errors import GuidedCDError


@attrs.frozen(kw_only=True)
class Dimension:
    """One value that a suite measures over many videos, as a fraction."""

    name: str
    """Lower-case words joined by "_", as files of results have it."""
    group: str
    """The heading under which tables have it."""
    title: str
    """A short heading for a column."""
    low: float = 0.0
    """The least value that the benchmark's program can return."""
    high: float = 1.0
    """The largest value that it can return."""
    videos: int | None = None
    """Number of videos that a complete evaluation scores; None where it varies."""


@attrs.frozen(kw_only=True)
class AggregateScore:
    """A score that is computed from several dimensions."""

    name: str
    """Its key in JSON."""
    title: str
    """A short heading for a column."""
    needs: tuple[str, ...]
    """The dimensions that it is computed from. If one is missing, the score is absent; nothing counts as zero."""
    formula: Callable[[Mapping[str, float]], float]
    """From the values of these dimensions, as fractions, to the score, a fraction."""
    aliases: tuple[str, ...] = ()
    """Other names under which published tables have it."""


@attrs.frozen(kw_only=True)
class PublishedRow:
    """One row of a published table, in percent."""

    id: str
    label: str
    table: str
    """Where it is printed, such as "Table 11"."""
    values: Mapping[str, float]
    """By dimension or score, as printed."""
    misprints: Mapping[str, str] = attrs.field(factory=dict)
    """By dimension or score whose printed value is wrong, the reason."""
    corrected: Mapping[str, float] = attrs.field(factory=dict)
    """By dimension whose printed value is wrong, the right value, where it is known."""


@attrs.frozen(kw_only=True)
class SuiteVideo:
    """One video of a benchmark."""

    file: str
    """Its path in the folder of videos, such as "a cat-0.mp4"."""
    prompt: str
    number: int
    """Its place among all videos of the suite, from which its seed follows; it is the same for each shard."""


@attrs.frozen(kw_only=True)
class OfficialCommand:
    """How the benchmark's own program scores the videos of one dimension."""

    dimension: str
    calls: tuple[tuple[str, ...], ...]
    """Programs with their arguments, which run one after another in an empty folder."""
    results: str
    """A pattern of the file of results in that folder."""
    timeout: float
    """Seconds after which a call is stopped."""
    advice: str = ""
    """What to do if the program does not exist."""


class Suite:
    """Base class of a suite: a subclass states its dimensions and scores, and may override the methods."""

    title: ClassVar[str] = ""
    """Name and version of the benchmark."""
    dimensions: ClassVar[Sequence[Dimension]] = ()
    """All dimensions, in the order of the benchmark."""
    scores: ClassVar[Sequence[AggregateScore]] = ()
    """The aggregate scores."""
    tables: ClassVar[Sequence[Sequence[str]]] = ()
    """The columns of each printed table: names of dimensions and scores. Without any, all are in one table."""
    patterns: ClassVar[Sequence[str]] = ("*_eval_results.json", "*.json")
    """Files of results in a folder: those that match the first pattern that any file matches."""
    other_versions: ClassVar[Mapping[str, Sequence[str]]] = {}
    """By benchmark that is easily taken for this one, the dimensions that only it has."""

    def __init__(self, config: Any) -> None:
        """Keep the options."""
        self.config = config

    def published(self) -> Sequence[PublishedRow]:
        """Published rows, those of the main table first."""
        return ()

    def parse(self, name: str, text: str) -> Mapping[str, Any]:
        """The values in a file of results, by the names that the file has.

        Args:
            name: The file's name, for errors.
            text: Its content.

        Returns:
            By dimension a number, or a list that starts with the number and may continue with a list of videos.

        Raises:
            GuidedCDError: The file is malformed.
        """
        content = parse_json(text, name)
        if not isinstance(content, dict):
            raise GuidedCDError(
                f'{name} contains no object of dimensions. {self.title} has files such as {{"dimension": 0.5}}, or '
                '{"dimension": [0.5, [...]]}.'
            )
        return content

    def videos(self) -> Sequence[SuiteVideo]:
        """The videos of the benchmark, in the order of its prompts.

        Raises:
            GuidedCDError: The options name no prompts, or the prompts are incomplete.
        """
        raise GuidedCDError(f"guidedcd cannot generate the videos of {self.title}; only its tables can be read.")

    def commands(self, videos: Path) -> Sequence[OfficialCommand]:
        """How the benchmark's own program scores each dimension.

        Args:
            videos: The absolute path of the folder of videos.

        Raises:
            GuidedCDError: The benchmark has no program that guidedcd can run.
        """
        raise GuidedCDError(f"guidedcd runs no program of {self.title}. Give its results with --table.")
