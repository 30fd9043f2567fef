"""Samples, routes, and the composition of routing rules: metadata only, no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import attrs


@attrs.frozen
class Reader:
    """How one reward reads text: with its own tokenizer, up to its own context."""

    max_tokens: int
    """Context length, special tokens included."""
    count: Callable[[str], int]
    """Number of tokens of a text, special tokens included, before any truncation."""


@attrs.frozen(kw_only=True)
class Sample:
    """What is known of one clip, apart from its pixels."""

    id: str
    dataset: str
    caption: str
    short_caption: str | None = None
    tags: Mapping[str, Any] = attrs.field(factory=dict)
    """Free metadata of the dataset, JSON values only."""
    motion: float | None = None
    """How much the clip moves, in the dataset's own unit; None when unknown."""
    readers: Mapping[str, Reader] = attrs.field(factory=dict, eq=False)
    """The run's rewards by name, as readers of text."""

    def fits(self, reward: str, text: str) -> bool:
        """Whether `reward` can read the whole of `text`."""
        reader = self.readers[reward]
        return reader.count(text) <= reader.max_tokens


@attrs.frozen(kw_only=True)
class Route:
    """What happens to one sample."""

    caption: str
    """The text that the rewards read; the distillation loss always uses the sample's own caption."""
    rewards: frozenset[str]
    """Names of the rewards that score this sample; empty means distillation only."""
    guided: bool = True
    """Whether energies apply to this sample."""


class RoutingRule(Protocol):
    """A pure function of metadata; rules are applied left to right."""

    def __call__(self, sample: Sample, route: Route) -> Route:
        """The route after this rule; change it with `attrs.evolve`."""


def route(sample: Sample, rules: Iterable[RoutingRule]) -> Route:
    """The route of one sample: every reward reads its caption, then each rule in turn."""
    found = Route(caption=sample.caption, rewards=frozenset(sample.readers))
    for rule in rules:
        found = rule(sample, found)
    return found
