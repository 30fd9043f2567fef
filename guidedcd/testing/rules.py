"""The rules of behaviour for each kind of component, which run on a tiny teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from guidedcd.testing import datasets, energies, metrics, rewards, routes, suites, teachers
from guidedcd.testing.checked_component import CheckedComponent

Rule = Callable[[CheckedComponent], None]

RULES: dict[str, Sequence[Rule]] = {
    "energy": energies.RULES,
    "reward": rewards.RULES,
    "route": routes.RULES,
    "teacher": teachers.RULES,
    "dataset": datasets.RULES,
    "metric": metrics.RULES,
    "suite": suites.RULES,
}
"""The rules by kind."""
