"""Routing rules that do not follow their contract."""

from __future__ import annotations

import pytest

from guidedcd.data.routing import Sample, route
from guidedcd.errors import GuidedCDError


def test_a_rule_that_returns_no_route_is_named():
    """The error contains the rule's name and what it returned."""

    def forgets(sample, route):
        """A rule without a `return`."""

    with pytest.raises(GuidedCDError, match=r"routing rule .*forgets returned NoneType; it must return a Route"):
        route(Sample(id="a/1", dataset="a", caption="a ball"), [forgets])
