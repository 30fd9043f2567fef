"""The rules of behaviour for each kind of component, which run on a tiny teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from guidedcd.testing import energies, other_kinds, rewards, routes, teachers
from guidedcd.testing.subject import Subject

Rule = Callable[[Subject], None]

RULES: dict[str, Sequence[Rule]] = {
    "energy": energies.RULES,
    "reward": rewards.RULES,
    "route": routes.RULES,
    "teacher": teachers.RULES,
    "dataset": [other_kinds.dataset_yields_clips],
    "metric": [other_kinds.metric_scores_each_video],
}
"""The rules by kind."""
