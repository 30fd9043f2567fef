"""Criteria of claims: a sum of arms compared with another one, such as `speed: energy > none + 0.05`. No torch.

A criterion is METRIC: SUM > SUM, or <, or |SUM| < NUMBER. A sum has terms joined by " + " and " - "; a term is an
arm, a factor times an arm (`1/3*hps`), or a number. It is a statement about one contrast of arms.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import attrs

from guidedcd.errors import GuidedCDError


@attrs.frozen(kw_only=True)
class Criterion:
    """The contrast sum(factor * arm) of a metric lies above `low` and below `high`."""

    text: str
    metric: str
    factors: Mapping[str, float]
    """By arm."""
    low: float = -float("inf")
    high: float = float("inf")

    def contrast(self, values: Mapping[str, float]) -> float:
        """The contrast for the metric's values by arm."""
        return sum(factor * values[arm] for arm, factor in self.factors.items())


def parse(text: str) -> Criterion:
    """The criterion that a text describes.

    Raises:
        GuidedCDError: It has another form.
    """
    metric, colon, rule = text.partition(":")
    words = rule.split()
    signs = [word for word in words if word in ("<", ">")]
    if not colon or not metric.strip() or len(signs) != 1:
        raise _malformed(text, "it must be METRIC: SUM > SUM, with one < or >")
    position = words.index(signs[0])
    left, right = words[:position], words[position + 1 :]
    if left and left[0].startswith("|") and left[-1].endswith("|"):
        left[0] = left[0].removeprefix("|")
        left[-1] = left[-1].removesuffix("|")
        factors, constant = _sum([word for word in left if word], text)
        others, bound = _sum(right, text)
        if others or constant or signs[0] == ">":
            raise _malformed(text, "an absolute value of arms must be below a number")
        return Criterion(text=text, metric=metric.strip(), factors=factors, low=-bound, high=bound)
    factors, constant = _sum(left, text)
    others, bound = _sum(right, text)
    for arm, factor in others.items():
        factors[arm] = factors.get(arm, 0.0) - factor
    factors = {arm: factor for arm, factor in factors.items() if factor}
    if not factors:
        raise _malformed(text, "it names no arm")
    limit = {"low" if signs[0] == ">" else "high": bound - constant}
    return Criterion(text=text, metric=metric.strip(), factors=factors, **limit)


def _sum(words: list[str], text: str) -> tuple[dict[str, float], float]:
    """Factors by arm and the constant of a sum; terms stand at even places, signs between them."""
    factors: dict[str, float] = {}
    constant = 0.0
    if len(words) % 2 == 0:
        raise _malformed(text, "terms are joined by + or - with spaces around it")
    for number, word in enumerate(words):
        if number % 2:
            if word not in ("+", "-"):
                raise _malformed(text, f"'{word}' is no + or -")
            continue
        sign = -1.0 if number and words[number - 1] == "-" else 1.0
        written, star, arm = word.rpartition("*")
        if star or not _is_number(word):
            factor = _number(written, text) if star else 1.0
            factors[arm] = factors.get(arm, 0.0) + sign * factor
        else:
            constant += sign * _number(word, text)
    return factors, constant


def _is_number(word: str) -> bool:
    return word.lstrip("-").replace(".", "", 1).replace("/", "", 1).isdigit()


def _number(word: str, text: str) -> float:
    if not _is_number(word):
        raise _malformed(text, f"'{word}' is no number")
    try:
        return float(Fraction(word))
    except (ValueError, ZeroDivisionError):
        raise _malformed(text, f"'{word}' is no number") from None


def _malformed(text: str, why: str) -> GuidedCDError:
    return GuidedCDError(f"the criterion '{text}' is malformed: {why}.")
