"""A teacher's figures from when it was made, for an evaluation's table to show beside its own."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from guidedcd.errors import GuidedCDError

SPLITS = {"full": "motion", "no-motion": "no-motion"}
"""The proving ground's kinds of prompts, as evaluations call them."""


def rows(teacher: Any, name: str, keys: Collection[str]) -> list[dict[str, Any]]:
    """Rows of the model card with the scores among `keys`; they have no intervals, and no pairs.

    Args:
        teacher: Asked for `card()`, a list of {"label", "steps", "evaluations", "omega", "solver", "scores"}, where
            scores are numbers by split and name.
        name: Its registered name; "shapes" has the proving ground's card.
        keys: The scores of the evaluation.
    """
    card = getattr(teacher, "card", shapes if name == "shapes" else list)
    found = []
    for row in card():
        scores = {
            split: {k: {"mean": v, "low": None, "high": None, "n": None} for k, v in some.items() if k in keys}
            for split, some in row["scores"].items()
        }
        if any(scores.values()):
            place = {"name": f"card-{row['steps']}", "source": "model card", "seconds": None, "scales": {}}
            found.append({**place, **row, "scores": scores})
    return found


def shapes() -> list[dict[str, Any]]:
    """The embedded teacher at its most steps, with the guidance that served it best."""
    from guidedcd_shapes.models import meta

    try:
        measured: Mapping[str, Any] = meta()["stages"]["evaluation"]["steps"]
    except (OSError, KeyError, GuidedCDError):
        return []
    pattern = re.compile(r"(full|no-motion) ddim (\d+) steps g ([\d.]+)")
    settings = {key: (m[1], int(m[2]), float(m[3])) for key in measured if (m := pattern.fullmatch(key))}
    most = max((steps for _, steps, _ in settings.values()), default=0)
    full = {g: measured[key] for key, (kind, steps, g) in settings.items() if (kind, steps) == ("full", most)}
    if not full:
        return []
    best = max(full, key=lambda g: full[g].get("all", 0.0))
    scores = {
        SPLITS[kind]: {name: value for name, value in measured[key].items() if value is not None}
        for key, (kind, steps, g) in settings.items()
        if (steps, g) == (most, best)
    }
    about = {"steps": most, "evaluations": 2 * most, "omega": best - 1, "solver": "ddim"}
    return [{"label": f"teacher, {most} steps", **about, "scores": scores}]
