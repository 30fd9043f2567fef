"""The route `moving`: motion guidance only where the reference has motion to follow."""

from __future__ import annotations

import attrs

from guidedcd import Route, Sample
from guidedcd_videos import MovingConfig

NO = (0, False, "0", "false", "False", "no")


class Moving:
    """Switches energies off for clips with too little motion; rewards and captions stay as they are."""

    def __init__(self, config: MovingConfig) -> None:
        self.config = config

    def __call__(self, sample: Sample, route: Route) -> Route:
        """The route, unguided where the clip is known not to move; an unknown motion changes nothing."""
        still = sample.motion is not None and sample.motion < self.config.least
        if still or sample.dataset in self.config.never or sample.tags.get(self.config.tag) in NO:
            return attrs.evolve(route, guided=False)
        return route
