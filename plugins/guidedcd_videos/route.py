"""The route `moving`: no energies for clips that hardly move."""

from __future__ import annotations

import attrs

from guidedcd import Route, Sample
from guidedcd_videos import MovingConfig

FALSE = (0, False, "0", "false", "False", "no")


class Moving:
    """Switches energies off for clips with too little motion; rewards and captions stay as they are."""

    def __init__(self, config: MovingConfig) -> None:
        self.config = config

    def __call__(self, sample: Sample, route: Route) -> Route:
        """The route, unguided if the clip is known to move too little; unknown motion changes nothing."""
        still = sample.motion is not None and sample.motion < self.config.least
        if still or sample.dataset in self.config.never or sample.tags.get(self.config.tag) in FALSE:
            return attrs.evolve(route, guided=False)
        return route
