"""Options of the sentinel: checks during training for rewards that rise while the videos get worse. No torch."""

from __future__ import annotations

import attrs
from attrs.validators import ge, in_, le, optional

from guidedcd.docstrings import documented

MOST_PROMPTS = 64
"""The number of a teacher's prompts that neither the training nor the evaluation has."""


def _names(value: object) -> tuple[str, ...]:
    """Comma-separated names, or several."""
    texts = value.split(",") if isinstance(value, str) else value
    return tuple(str(text).strip() for text in texts if str(text).strip())  # type: ignore[attr-defined]


@documented
@attrs.frozen(kw_only=True)
class SentinelConfig:
    """Checks during training for rewards that rise while the videos get worse."""

    every: int | None = attrs.field(default=None, validator=optional([ge(1), le(10**9)]))
    """Steps between checks; none, the default, checks nothing."""
    prompts: int = attrs.field(default=32, validator=[ge(8), le(MOST_PROMPTS)])
    """Largest number of prompts of a check, 8 to 64; neither training nor evaluation has the teacher's own."""
    file: str | None = None
    """File of prompts, one a line, of which the first are used; by default the teacher's own for choosing settings."""
    judges: tuple[str, ...] = attrs.field(default=(), converter=_names)
    """Metrics and rewards that judge the videos and train nothing, comma-separated; by default the run's metrics."""
    action: str = attrs.field(default="warn", validator=in_(("warn", "back-off", "stop")))
    """Effect of an alarm: warn; back-off, which lowers the weights of the rewards that the alarm names; or stop, which
    ends the training."""
    factor: float = attrs.field(default=0.5, validator=[ge(0), le(1)])
    """Factor of a weight that is lowered; only where `action` is back-off."""
