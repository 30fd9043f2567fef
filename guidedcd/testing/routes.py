"""The rules of routes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from guidedcd.data.routing import Reader, Route, Sample
from guidedcd.testing.helpers import same_in_threads

if TYPE_CHECKING:
    from guidedcd.testing.checked_component import CheckedComponent


def samples() -> list[Sample]:
    """Samples with and without a short caption; some captions are too long for every reward."""
    readers = {"one": Reader(max_tokens=4, count=_words), "two": Reader(max_tokens=12, count=_words)}
    long = "word " * 40
    return [
        Sample(id="1", dataset="d", caption="a ball", readers=readers),
        Sample(id="2", dataset="d", caption=long, readers=readers, motion=3.0, tags={"set": "web"}),
        Sample(id="3", dataset="e", caption=long, short_caption="a boat drifts", readers=readers, motion=0.0),
        Sample(id="4", dataset="e", caption="", readers={}),
    ]


def _words(text: str) -> int:
    return len(text.split()) + 2


def _routed(checked: CheckedComponent) -> Iterator[tuple[Sample, Route, Route]]:
    for sample in samples():
        before = Route(caption=sample.caption, rewards=frozenset(sample.readers))
        after = checked.built(sample, before)
        assert isinstance(after, Route), f"sample {sample.id} got {after!r}, not a Route"
        yield sample, before, after


def route_is_total(checked: CheckedComponent) -> None:
    """It returns a route to rewards of the run for every sample, with texts for rewards of the run alone."""
    for sample, _, after in _routed(checked):
        strange = set(after.captions) - set(sample.readers)
        assert not strange, f"sample {sample.id} has captions for {sorted(strange)}, which the run does not have"
        unknown = after.rewards - set(sample.readers)
        assert not unknown, f"sample {sample.id} is routed to {sorted(unknown)}, which the run does not have"


def route_is_pure(checked: CheckedComponent) -> None:
    """It returns the same route for the same sample and route every time."""
    for sample, before, after in _routed(checked):
        assert checked.built(sample, before) == after, f"sample {sample.id} got another route the second time"


def route_invents_no_caption(checked: CheckedComponent) -> None:
    """It chooses captions of the sample, or parts of them."""
    for sample, before, after in _routed(checked):
        own = [text for text in (sample.caption, sample.short_caption, before.caption) if text is not None]
        for text in (after.caption, *after.captions.values()):
            assert any(text in one for one in own), f"sample {sample.id} got a caption that is not its own: {text!r}"


def route_is_safe_in_threads(checked: CheckedComponent) -> None:
    """Calls from several threads do not disturb each other: a thread reads batches ahead."""

    def routed(sample: Sample) -> Route:
        return checked.built(sample, Route(caption=sample.caption, rewards=frozenset(sample.readers)))

    assert same_in_threads(routed, samples()), "calls from several threads disturb each other: keep no state in self"


RULES = [route_is_total, route_is_pure, route_invents_no_caption, route_is_safe_in_threads]
