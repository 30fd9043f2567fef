"""Checks of option values; each raises a `ValueError` that begins with the quoted name of the field. No torch."""

from __future__ import annotations

import re
from typing import Any

import attrs

from guidedcd.errors import refusal, shortened

MOST_STEPS = 10**9
"""Optimiser steps of a run."""
MOST_PROMPTS = 100_000
"""Prompts of one command."""
LARGEST_BATCH = 100_000
"""Samples of one forward pass."""
LARGEST_SEED_OF_PROMPTS = 10**12
"""The seed of a video is this seed times 10^6 plus the prompt's number, and fits into 64 bits."""

LONGEST_NAME = 200
"""Bytes of the longest name of a run; its folder's name has the date and a number as well."""


def is_device(instance: object, attribute: attrs.Attribute, value: str) -> None:
    """A device that guidedcd uses."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise ValueError(refusal(f"'{attribute.name}'", value, "auto, cpu, cuda, cuda:N or mps"))


def is_seed(instance: object, attribute: attrs.Attribute, value: int) -> None:
    """A seed that a file, torch and numpy all hold."""
    if not 0 <= value < 2**63:
        raise ValueError(refusal(f"'{attribute.name}'", value, "a whole number from 0 to 2^63 - 1"))


def is_name(instance: object, attribute: attrs.Attribute, value: str) -> None:
    """The name of a folder, without a path."""
    if not re.fullmatch(r"\w[\w.+-]*", value):
        raise ValueError(
            f"'{attribute.name}' is {shortened(ascii(value))}; it names a folder, so it must begin with a letter or "
            "digit and have only letters, digits, '-', '_', '+' and '.'."
        )
    if (size := len(value.encode())) > LONGEST_NAME:
        raise ValueError(
            f"'{attribute.name}' has {size} bytes; it names a folder, so it may have at most {LONGEST_NAME} bytes."
        )


def is_subrange(instance: object, attribute: attrs.Attribute, value: tuple[float, float]) -> None:
    """A range inside of [0, 1]."""
    if not 0 <= value[0] < value[1] <= 1:
        raise ValueError(
            refusal(f"'{attribute.name}'", value, "two different numbers from 0 to 1, the lower one first")
        )


MOST_SEEDS = 10_000
"""Seeds per prompt of one evaluation."""


def are_seeds(instance: object, attribute: attrs.Attribute, value: int | tuple[int, ...]) -> None:
    """How many seeds, or the seeds."""
    if isinstance(value, int) and not 1 <= value <= MOST_SEEDS:
        raise ValueError(refusal(f"'{attribute.name}'", value, f"a whole number from 1 to {MOST_SEEDS:,}"))
    if isinstance(value, int):
        return
    if not value or len(set(value)) < len(value) or min(value) < 0 or max(value) > LARGEST_SEED_OF_PROMPTS:
        raise ValueError(refusal(f"'{attribute.name}'", value, "one or more different numbers from 0 to 10^12"))


def are_strengths(instance: object, attribute: attrs.Attribute, value: tuple[float, ...]) -> None:
    """Guidance strengths, at least one."""
    if not value or min(value) < 0:
        raise ValueError(refusal(f"'{attribute.name}'", value, "one or more numbers of at least 0, such as 1,2,4"))


def is_count_or_prompts(instance: object, attribute: attrs.Attribute, value: Any) -> None:
    """A count from 1 to `MOST_PROMPTS`, or anything else, which is read as prompts."""
    if isinstance(value, int) and not 1 <= value <= MOST_PROMPTS:
        raise ValueError(refusal(f"'{attribute.name}'", value, f"from 1 to {MOST_PROMPTS:,}, or a file of prompts"))
