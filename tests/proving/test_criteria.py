"""Criteria: sums of arms compared with each other."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidedcd.errors import GuidedCDError
from guidedcd.proving.criteria import parse

NUMBERS = st.floats(-10, 10, allow_nan=False)


@given(a=NUMBERS, b=NUMBERS, c=NUMBERS)
def test_a_criterion_is_what_it_reads(a, b, c):
    """The contrast lies within the bounds exactly where the written inequality holds."""
    criterion = parse("m: 1/2*a - b > c - 0.25")
    contrast = criterion.contrast({"a": a, "b": b, "c": c})

    assert math.isclose(contrast, a / 2 - b - c, abs_tol=1e-9)
    assert (criterion.low, criterion.high) == (-0.25, math.inf)
    assert criterion.metric == "m"


def test_criteria_bound_contrasts_from_above_or_both_sides():
    """`<` bounds a contrast from above, an absolute value from both sides."""
    less, both = parse("m: a + 1 < 2*b"), parse("m: |a - b| < 0.5")

    assert (dict(less.factors), less.low, less.high) == ({"a": 1.0, "b": -2.0}, -math.inf, -1.0)
    assert (dict(both.factors), both.low, both.high) == ({"a": 1.0, "b": -1.0}, -0.5, 0.5)
    assert dict(parse("m: |a| < 1").factors) == {"a": 1.0}


@pytest.mark.parametrize(
    "text",
    [
        "a > b",
        "m: a",
        "m: a > b > c",
        "m: a b > c",
        "m: a - > c",
        "m: |a - b| > 1",
        "m: 1 > 2",
        "m: x*a > b",
        ": a > b",
    ],
)
def test_other_forms_are_refused(text):
    """A text of another form is one sentence that quotes it."""
    with pytest.raises(GuidedCDError, match="criterion '") as error:
        parse(text)

    assert text in str(error.value)
