"""Figures of a teacher's model card, as further rows of an evaluation; they were measured on other prompts."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from guidedcd.models.teachers.protocol import Teacher


def rows(teacher: Teacher, keys: Collection[str]) -> list[dict[str, Any]]:
    """Rows of the model card with the scores in `keys`, without intervals and paired differences.

    Args:
        teacher: May have a method `card()` that returns a list of mappings with "label", "steps", "evaluations",
            "omega", "solver" and "scores", where scores are numbers by split and name.
        keys: The scores of the evaluation.
    """
    card = getattr(teacher, "card", list)
    card_rows = []
    for row in card():
        scores = {
            split: {k: {"mean": v, "low": None, "high": None, "n": None} for k, v in figures.items() if k in keys}
            for split, figures in row["scores"].items()
        }
        if any(scores.values()):
            common: dict[str, Any] = {"source": "model card", "seconds": None, "scales": {}}
            label = f"{row['label']}, published, other prompts"
            card_rows.append({"name": f"card-{row['steps']}", **common, **row, "label": label, "scores": scores})
    return card_rows
