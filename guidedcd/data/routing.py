"""Samples, routes and routing rules, which read metadata only. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from guidedcd.docstrings import documented
from guidedcd.errors import GuidedCDError, suggest
from guidedcd.plugins.registry import blame

if TYPE_CHECKING:
    from guidedcd.config.run import Run


@documented
@attrs.frozen
class Reader:
    """The tokenizer and the context length of one reward."""

    max_tokens: int
    """Context length, special tokens included."""
    count: Callable[[str], int]
    """Number of tokens of a text, special tokens included, before any truncation."""


@documented
@attrs.frozen(kw_only=True)
class Sample:
    """The metadata of one clip."""

    id: str
    """Unique within its dataset, stable between runs."""
    dataset: str
    """The dataset's registered name."""
    caption: str
    """The text for the teacher; may be longer than the context of rewards."""
    short_caption: str | None = None
    """A short caption of the same clip; None where the dataset has none."""
    tags: Mapping[str, Any] = attrs.field(factory=dict)
    """Free metadata of the dataset, JSON values only."""
    motion: float | None = None
    """Amount of motion, in a unit of the dataset; None where it is unknown."""
    readers: Mapping[str, Reader] = attrs.field(factory=dict, eq=False)
    """Tokenizer and context length of the run's rewards, by name."""
    energies: frozenset[str] = attrs.field(default=frozenset(), eq=False)
    """Names of the run's energies."""

    def fits(self, reward: str, text: str) -> bool:
        """Whether `text` fits into the context of `reward`."""
        reader = self.readers[reward]
        return reader.count(text) <= reader.max_tokens


@documented
@attrs.frozen(kw_only=True)
class Route:
    """The use of one sample in training."""

    caption: str
    """The text that the rewards read; the distillation loss always uses the sample's own caption."""
    captions: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    """By reward, a text that it reads in place of `caption`."""
    rewards: frozenset[str]
    """Names of the rewards that score this sample; empty means distillation only."""
    guided: bool = True
    """Whether energies apply to this sample."""
    without_energies: frozenset[str] = frozenset()
    """Names of energies that do not apply to this sample, even if it is guided."""

    def caption_of(self, reward: str) -> str:
        """The text that a reward reads."""
        return self.captions.get(reward, self.caption)

    def is_guided_by(self, energy: str) -> bool:
        """Whether an energy applies to this sample."""
        return self.guided and energy not in self.without_energies


class RoutingRule(Protocol):
    """A pure function of metadata; rules are applied in their order."""

    def __call__(self, sample: Sample, route: Route) -> Route:
        """The route after this rule; change it with `attrs.evolve`."""


def route(sample: Sample, rules: Mapping[str, RoutingRule] | Iterable[RoutingRule]) -> Route:
    """The route of one sample: its caption for every reward, changed by each rule in turn.

    Args:
        sample: With the readers of the run's rewards.
        rules: Applied in their order; a mapping has the description of each rule for errors.

    Raises:
        GuidedCDError: A rule returned something else than a route to rewards of the run.
    """
    named = rules.items() if isinstance(rules, Mapping) else ((_name_of(rule), rule) for rule in rules)
    result = Route(caption=sample.caption, rewards=frozenset(sample.readers))
    for whose, rule in named:
        try:
            with blame(whose):
                result = rule(sample, result)
        except Exception as error:
            error.add_note(f"for sample '{sample.id}'")
            raise
        _check(result, sample, whose)
    return result


class Router:
    """Routes the samples of a run, each of them once.

    Args:
        rules: As `rules_of` returns them.
        readers: The run's rewards as readers of text, by name.
        energies: Names of the run's energies.
    """

    def __init__(
        self,
        rules: Mapping[str, RoutingRule] | Iterable[RoutingRule],
        readers: Mapping[str, Reader],
        energies: Iterable[str] = (),
    ) -> None:
        self.rules = rules if isinstance(rules, Mapping) else list(rules)
        self.readers, self.energies = readers, frozenset(energies)
        self._routes: dict[tuple[str | None, ...], tuple[Sample, Route]] = {}

    def __call__(self, sample: Sample) -> tuple[Sample, Route]:
        """The sample with this run's readers, and its route.

        Raises:
            GuidedCDError: As `route`.
        """
        # Two datasets may use the same ids.
        key = (sample.dataset, sample.id, sample.caption, sample.short_caption)
        if key not in self._routes:
            readable = attrs.evolve(sample, readers=self.readers, energies=self.energies)
            self._routes[key] = (readable, route(readable, self.rules))
        return self._routes[key]


def counts(routes: Sequence[Route], rewards: Iterable[str], energies: Iterable[str]) -> dict[str, Any]:
    """Numbers of clips by objective, as JSON values.

    Args:
        routes: One for each clip; every clip feeds the consistency loss.
        rewards: Names of the run's rewards.
        energies: Names of the run's energies.
    """
    return {
        "clips": len(routes),
        "rewards": {name: sum(name in one.rewards for one in routes) for name in rewards},
        "without_rewards": sum(not one.rewards for one in routes),
        "energies": {name: sum(one.is_guided_by(name) for one in routes) for name in energies},
    }


PROMPTS = "prompts"
"""The `dataset` of samples that are no clips: prompts of the videos that the student samples itself."""


def rules_of(run: Run) -> dict[str, RoutingRule]:
    """The run's routing rules by their description for errors, built.

    Rules of one class that has a static method `together(rules)` become one rule, at the place of the first.
    """
    groups: dict[Any, dict[str, Any]] = {}
    for whose, rule in run.described("route").items():
        groups.setdefault(type(rule) if hasattr(rule, "together") else whose, {})[whose] = rule
    rules: dict[str, RoutingRule] = {}
    for group in groups.values():
        first = next(iter(group.values()))
        rules[" and ".join(group)] = first if len(group) == 1 else first.together(list(group.values()))
    return rules


def _name_of(rule: RoutingRule) -> str:
    return f"the routing rule {getattr(rule, '__qualname__', type(rule).__qualname__)}"


def _check(result: Any, sample: Sample, whose: str) -> None:
    """Raise GuidedCDError unless `result` is a route to rewards that the sample has readers of."""
    of = f"(sample '{sample.id}')"
    if not isinstance(result, Route):
        raise GuidedCDError(f"{whose} returned {type(result).__name__}; it must return a Route {of}.")
    if not isinstance(result.caption, str) or not isinstance(result.guided, bool):
        raise GuidedCDError(
            f"{whose} returned a route whose caption is no text or whose `guided` is no truth value {of}."
        )
    if not isinstance(result.captions, Mapping) or not all(isinstance(text, str) for text in result.captions.values()):
        raise GuidedCDError(f"{whose} returned a route whose `captions` are no texts by reward {of}.")
    if not isinstance(result.without_energies, frozenset | set):
        kind = type(result.without_energies).__name__
        raise GuidedCDError(
            f"{whose} returned a route whose `without_energies` are a {kind}; they must be a frozenset {of}."
        )
    if not isinstance(result.rewards, frozenset | set):
        kind = type(result.rewards).__name__
        raise GuidedCDError(
            f"{whose} returned a route whose rewards are a {kind}; they must be a frozenset of names {of}."
        )
    if unknown := sorted(str(name) for name in (*result.rewards, *result.captions) if name not in sample.readers):
        action = "sends" if unknown[0] in map(str, result.rewards) else "sends a caption of"
        names = ", ".join(sorted(sample.readers)) or "none"
        raise GuidedCDError(
            f"{whose} {action} sample '{sample.id}' to reward '{unknown[0]}', which the run does not have."
            f"{suggest(unknown[0], sample.readers)} Rewards of the run: {names}."
        )
    if unknown := sorted(str(name) for name in result.without_energies if name not in sample.energies):
        names = ", ".join(sorted(sample.energies)) or "none"
        raise GuidedCDError(
            f"{whose} excludes energy '{unknown[0]}' from sample '{sample.id}', which the run does not have."
            f"{suggest(unknown[0], sample.energies)} Energies of the run: {names}."
        )
