"""Checks of option values; each raises a `ValueError` that begins with the quoted name of the field. No torch."""

from __future__ import annotations

import re
from typing import Any

import attrs

from guidedcd.errors import shortened, shown

LONGEST_NAME = 200
"""Bytes of the longest name of a run; its folder's name has the date and a number as well."""


def is_device(instance: object, attribute: attrs.Attribute, value: str) -> None:
    """A device that guidedcd uses."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise ValueError(f"'{attribute.name}' must be auto, cpu, cuda, cuda:N or mps (got {shown(value)})")


def is_seed(instance: object, attribute: attrs.Attribute, value: int) -> None:
    """A seed that a file, torch and numpy all hold."""
    if not 0 <= value < 2**63:
        raise ValueError(f"'{attribute.name}' must be a whole number from 0 to 2^63 - 1 (got {shortened(value, 40)})")


def is_name(instance: object, attribute: attrs.Attribute, value: str) -> None:
    """The name of a folder, without a path."""
    if not re.fullmatch(r"\w[\w.+-]*", value):
        raise ValueError(
            f"'{attribute.name}' must be letters, digits, '-', '_' and '.', as it names a folder "
            f"(got {shortened(ascii(value))})"
        )
    if (size := len(value.encode())) > LONGEST_NAME:
        raise ValueError(f"'{attribute.name}' names a folder, so it has at most {LONGEST_NAME} bytes (got {size})")


def is_subrange(instance: object, attribute: attrs.Attribute, value: tuple[float, float]) -> None:
    """A range inside of [0, 1]."""
    if not 0 <= value[0] < value[1] <= 1:
        raise ValueError(f"'{attribute.name}' must be two numbers, 0 <= low < high <= 1: {value}")


MOST_SEEDS = 10_000
"""Seeds per prompt of one evaluation."""


def are_seeds(instance: object, attribute: attrs.Attribute, value: int | tuple[int, ...]) -> None:
    """How many seeds, or the seeds."""
    if isinstance(value, int) and not 1 <= value <= MOST_SEEDS:
        raise ValueError(
            f"'{attribute.name}' must be a whole number from 1 to {MOST_SEEDS:,} (got {shortened(value, 40)})"
        )
    if not isinstance(value, int) and (not value or len(set(value)) < len(value) or min(value) < 0):
        raise ValueError(f"'{attribute.name}' must be one or more different numbers of at least 0")


def is_count_or_prompts(instance: object, attribute: attrs.Attribute, value: Any) -> None:
    """A count of at least 1, or anything else, which is read as prompts."""
    if isinstance(value, int) and value < 1:
        raise ValueError(f"'{attribute.name}' must be >= 1: {value}")
