"""Samples, routes and routing rules, which read metadata only. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import attrs

from guidedcd.errors import GuidedCDError


@attrs.frozen
class Reader:
    """The tokenizer and the context length of one reward."""

    max_tokens: int
    """Context length, special tokens included."""
    count: Callable[[str], int]
    """Number of tokens of a text, special tokens included, before any truncation."""


@attrs.frozen(kw_only=True)
class Sample:
    """The metadata of one clip."""

    id: str
    dataset: str
    caption: str
    short_caption: str | None = None
    tags: Mapping[str, Any] = attrs.field(factory=dict)
    """Free metadata of the dataset, JSON values only."""
    motion: float | None = None
    """Amount of motion, in a unit of the dataset; None where it is unknown."""
    readers: Mapping[str, Reader] = attrs.field(factory=dict, eq=False)
    """Tokenizer and context length of the run's rewards, by name."""

    def fits(self, reward: str, text: str) -> bool:
        """Whether `text` fits into the context of `reward`."""
        reader = self.readers[reward]
        return reader.count(text) <= reader.max_tokens


@attrs.frozen(kw_only=True)
class Route:
    """The use of one sample in training."""

    caption: str
    """The text that the rewards read; the distillation loss always uses the sample's own caption."""
    rewards: frozenset[str]
    """Names of the rewards that score this sample; empty means distillation only."""
    guided: bool = True
    """Whether energies apply to this sample."""


class RoutingRule(Protocol):
    """A pure function of metadata; rules are applied in their order."""

    def __call__(self, sample: Sample, route: Route) -> Route:
        """The route after this rule; change it with `attrs.evolve`."""


def route(sample: Sample, rules: Iterable[RoutingRule]) -> Route:
    """The route of one sample: its caption for every reward, changed by each rule in turn.

    Raises:
        GuidedCDError: A rule returned something else than a route.
    """
    result = Route(caption=sample.caption, rewards=frozenset(sample.readers))
    for rule in rules:
        result = rule(sample, result)
        if not isinstance(result, Route):
            name = getattr(rule, "__qualname__", type(rule).__qualname__)
            raise GuidedCDError(f"the routing rule {name} returned {type(result).__name__}; it must return a Route.")
    return result
