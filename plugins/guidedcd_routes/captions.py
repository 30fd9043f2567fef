"""The route `split-caption`, a pure rule on metadata."""

from __future__ import annotations

import re

import attrs

from guidedcd import Route, Sample
from guidedcd_routes import SplitCaptionConfig

_END = re.compile("[.!?\u2026][\"'\u201d\u2019)\\]]*(?=\\s)|[\u3002\uff01\uff1f]")
"""Where a sentence may end: a full stop within a number or a file name is followed by no space."""

_ABBREVIATION = re.compile(r"(?:\b(?:[A-Za-z]|[Mm]rs?|[Mm]s|[Dd]r|[Ss]t|[Pp]rof|[Nn]o|vs|etc|approx|e\.g|i\.e))\.$")
"""Endings of a text whose full stop belongs to an abbreviation or to an initial."""


def first_sentence(text: str) -> str:
    """The first sentence of `text` without spaces around it; all of it where no sentence ends before its end."""
    for end in _END.finditer(text):
        sentence = text[: end.end()]
        if not _ABBREVIATION.search(sentence):
            return sentence.strip()
    return text.strip()


class SplitCaption:
    """Each reward reads the caption, the short one if there is one, or else the first sentence of it.

    A reward that can read neither of the two as a whole does not score the sample.
    """

    def __init__(self, config: SplitCaptionConfig) -> None:
        self.config = config

    def __call__(self, sample: Sample, route: Route) -> Route:
        """The route with a sentence for each reward that cannot read all, without those that would truncate it."""
        caption = sample.short_caption or sample.caption
        long = {reward for reward in route.rewards if not sample.fits(reward, caption)}
        sentence = first_sentence(caption) if long else ""
        captions = {reward: sentence for reward in sorted(long) if sentence and sample.fits(reward, sentence)}
        return attrs.evolve(
            route,
            caption=caption,
            captions={**route.captions, **captions},
            rewards=frozenset(route.rewards) - (long - set(captions)),
        )
