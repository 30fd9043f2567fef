"""Comparison of recomputed values with golden ones."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import safe_open
from torch import Tensor

from guidedcd.parity import Tolerance

Allowed = Callable[[str], Tolerance | None]


@attrs.frozen
class Row:
    """One line of the table."""

    file: Path
    key: str
    error: float = math.nan
    largest: float = math.nan
    limit: float = math.nan
    ok: bool = True
    note: str = ""
    """The reason where there is no number, e.g. "not computed"."""


def compare_tensors(golden: Path, values: dict[str, Tensor], allowed: Allowed) -> list[Row]:
    """One row per tensor of a golden file.

    A tensor fails if it was not computed, has another shape or exceeds its tolerance; integers must be equal.
    """
    rows = []
    with safe_open(golden, "pt") as file:
        for key in sorted(file.keys()):
            tolerance = allowed(key)
            if tolerance is None:
                continue
            golden_value = file.get_tensor(key)
            if key not in values:
                rows.append(Row(golden, key, ok=False, note="not computed"))
            elif values[key].shape != golden_value.shape:
                note = f"shape {tuple(values[key].shape)}, not {tuple(golden_value.shape)}"
                rows.append(Row(golden, key, ok=False, note=note))
            else:
                exact = not golden_value.is_floating_point()
                rows.append(_row(golden, key, values[key].cpu().double(), golden_value.double(), tolerance, exact))
    return rows


def compare_json(golden: Path, values: Any, allowed: Allowed) -> list[Row]:
    """One row per number, truth value or list of them that was computed; other entries of the golden are ignored."""
    goldens = dict(_leaves(json.loads(golden.read_text(encoding="utf-8"))))
    rows = []
    for key, value in _leaves(values):
        tolerance = allowed(key)
        if tolerance is None or key not in goldens:
            continue
        try:
            actual, expected = (torch.as_tensor(_numeric(v), dtype=torch.float64) for v in (value, goldens[key]))
        except (TypeError, ValueError):
            rows.append(
                Row(golden, key, ok=value == goldens[key], note="equal" if value == goldens[key] else "differs")
            )
            continue
        if actual.shape != expected.shape:
            rows.append(Row(golden, key, ok=False, note=f"{actual.numel()} values, not {expected.numel()}"))
        else:
            exact = not any(isinstance(v, float) for v in _flat(goldens[key]))
            rows.append(_row(golden, key, actual, expected, tolerance, exact))
    return rows


def _row(file: Path, key: str, actual: Tensor, expected: Tensor, tolerance: Tolerance, exact: bool) -> Row:
    if not expected.numel():
        return Row(file, key, 0.0, 0.0, 0.0)
    error, largest = float((actual - expected).abs().max()), float(expected.abs().max())
    limit = 0.0 if exact else tolerance.limit(largest)
    return Row(file, key, error, largest, limit, ok=error <= limit)


def _flat(value: Any) -> list[Any]:
    return [leaf for v in value for leaf in _flat(v)] if isinstance(value, list) else [value]


def _numeric(value: Any) -> Any:
    """Numbers instead of truth values (0 and 1) and null (-1), so that lists of them are compared as numbers."""
    if isinstance(value, list):
        return [_numeric(v) for v in value]
    if isinstance(value, str):
        raise TypeError(value)
    return -1.0 if value is None else float(value)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything that is not a JSON object."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}/{key}" if path else str(key))
    else:
        yield path, value
