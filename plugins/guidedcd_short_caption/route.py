"""The routes `short-caption` and `all`: pure rules on metadata."""

from __future__ import annotations

import attrs

from guidedcd import Route, Sample
from guidedcd_short_caption import AllConfig, ShortCaptionConfig


class ShortCaption:
    """Rewards read the short caption where a sample has one, and only those score it whose context holds all of it."""

    def __init__(self, config: ShortCaptionConfig) -> None:
        self.config = config

    def __call__(self, sample: Sample, route: Route) -> Route:
        """The route with the caption to read, and without the rewards that would cut it."""
        caption = sample.short_caption or sample.caption
        fitting = frozenset(reward for reward in route.rewards if sample.fits(reward, caption))
        return attrs.evolve(route, caption=caption, rewards=fitting)


class All:
    """Every reward of the run scores every sample, with its whole caption, cut where a context ends."""

    def __init__(self, config: AllConfig) -> None:
        self.config = config

    def __call__(self, sample: Sample, route: Route) -> Route:
        """A route to all rewards."""
        return attrs.evolve(route, caption=sample.caption, rewards=frozenset(sample.readers))
