"""Optional attributes of components."""

from __future__ import annotations

from typing import ClassVar

from guidedcd.plugins.optional import misspelt, names


class Metric:
    """A metric whose headline has a wrong name."""

    titles: ClassVar = {"all": "all"}
    head_line = "all"
    window = 3


def test_a_misspelt_attribute_is_corrected():
    """A near match is reported with the right name; right names and others of the author's own are not."""
    assert misspelt("metric", Metric()) == {"head_line": "headline"}
    assert misspelt("route", Metric()) == {}


def test_optional_names_are_those_of_the_protocols():
    """Attributes and methods of a Protocol both count."""
    assert names("metric") == ("titles", "better", "headline", "applies")
    assert "prompts" in names("teacher") and names("dataset") == ()
