"""Options of the videos that the student samples while it trains. No torch."""

from __future__ import annotations

import attrs

from guidedcd.config.validators import LARGEST_BATCH
from guidedcd.docstrings import documented
from guidedcd.plugins.configs import _between


@documented
@attrs.frozen(kw_only=True)
class RolloutsConfig:
    """Videos that the student samples from noise while it trains, for the rewards."""

    videos: int = attrs.field(default=0, validator=_between(0, LARGEST_BATCH))
    """Number of videos that the student samples from noise in each step and process, for the rewards to score; their
    prompts need no clips."""
    steps: int = attrs.field(default=4, validator=_between(1, 50))
    """Sampling steps of a video that the student samples for the rewards; it ends after a random number of them,
    and only the last has a gradient."""
    prompts: str | None = None
    """File of prompts for the videos that the student samples for the rewards, one a line. By default the teacher's own
    prompts, or the store's captions if the teacher has none."""
