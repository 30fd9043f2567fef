"""The rules of metrics."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from guidedcd.testing.helpers import CAPTIONS, random

if TYPE_CHECKING:
    from guidedcd.testing.checked_component import CheckedComponent


def metric_scores_each_video(checked: CheckedComponent) -> None:
    """It returns values (B,) by name."""
    from guidedcd.data.clips import Prompt

    prompts = [Prompt(text=caption) for caption in CAPTIONS]
    scores = checked.built(random((2, 8, 3, 48, 48), 4).mul(0.2).add(0.5).clamp(0, 1), prompts)
    assert scores, "the metric returned no values"
    for name, values in scores.items():
        assert values.shape == (2,), f"{name} has shape {tuple(values.shape)}, not (2,)"
        assert all(math.isfinite(v) or math.isnan(v) for v in values.tolist()), f"{name} is infinite"


RULES = [metric_scores_each_video]
