"""The routes `short-caption` and `all`: pure rules on metadata."""

from __future__ import annotations

import attrs

from guidedcd import Route, Sample
from guidedcd_short_caption import AllConfig, ShortCaptionConfig


class ShortCaption:
    """Rewards read the short caption if there is one; only rewards that can read all of it score the sample.

    A reward for which an earlier rule chose a text of its own reads that.
    """

    def __init__(self, config: ShortCaptionConfig) -> None:
        self.config = config

    def __call__(self, sample: Sample, route: Route) -> Route:
        """The route with that caption, without the rewards that would truncate it."""
        caption = sample.short_caption or sample.caption
        fitting = frozenset(
            reward for reward in route.rewards if sample.fits(reward, route.captions.get(reward, caption))
        )
        return attrs.evolve(route, caption=caption, rewards=fitting)


class All:
    """Every reward of the run scores every sample, with its caption truncated to the reward's context."""

    def __init__(self, config: AllConfig) -> None:
        self.config = config

    def __call__(self, sample: Sample, route: Route) -> Route:
        """The route to all rewards of the run."""
        return attrs.evolve(route, caption=sample.caption, rewards=frozenset(sample.readers))
