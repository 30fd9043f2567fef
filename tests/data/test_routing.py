"""Routing rules that do not follow their contract."""

from __future__ import annotations

import attrs
import pytest

from guidedcd.data.routing import Reader, Route, Sample, counts, route
from guidedcd.errors import GuidedCDError


def test_a_rule_that_returns_no_route_is_named():
    """The error contains the rule's name and what it returned."""

    def forgets(sample, route):
        """A rule without a `return`."""

    with pytest.raises(GuidedCDError, match=r"routing rule .*forgets returned NoneType; it must return a Route"):
        route(Sample(id="a/1", dataset="a", caption="a ball"), [forgets])


READERS = {"clip": Reader(max_tokens=9, count=len)}
WRONG = {
    "reward": ({"rewards": frozenset({"clap"})}, r"sends sample 'a/1' to reward 'clap'.*Did you mean 'clip'"),
    "rewards": ({"rewards": ("clip",)}, "rewards are a tuple; they must be a frozenset"),
    "caption": ({"caption": None}, "whose caption is no text"),
    "guided": ({"guided": "yes"}, "`guided` is no truth value"),
    "captions": ({"captions": {"clip": None}}, "whose `captions` are no texts by reward"),
    "energies": ({"without_energies": ["pta"]}, "`without_energies` are a list; they must be a frozenset"),
    "energy": (
        {"without_energies": frozenset({"ptaa"})},
        r"excludes energy 'ptaa' from sample 'a/1'.*Did you mean 'pta'",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_route_is_an_error_of_its_rule(change, message):
    """Rewards that the run does not have, and values of the wrong type, are errors with the rule's description."""
    rules = {"route 'odd' of acme/odd": lambda sample, one: attrs.evolve(one, **change)}

    with pytest.raises(GuidedCDError, match=f"route 'odd' of acme/odd .*{message}"):
        route(Sample(id="a/1", dataset="a", caption="a ball", readers=READERS, energies=frozenset({"pta"})), rules)


def test_clips_are_counted_by_objective():
    """A reward counts the clips that are sent to it, and an energy those that it guides."""
    routes = [
        Route(caption="a", rewards=frozenset({"clip", "hps"})),
        Route(caption="b", rewards=frozenset({"clip"}), without_energies=frozenset({"pta"})),
        Route(caption="c", rewards=frozenset(), guided=False),
    ]

    assert counts(routes, ["hps", "clip"], ["pta", "dynamics"]) == {
        "clips": 3,
        "rewards": {"hps": 1, "clip": 2},
        "without_rewards": 1,
        "energies": {"pta": 1, "dynamics": 2},
    }


def test_an_exception_of_a_rule_names_the_rule():
    """A bug in a rule keeps its type and gets notes with the rule and the sample."""

    def odd(sample, one):
        return sample.tags["absent"]

    with pytest.raises(KeyError) as caught:
        route(Sample(id="a/1", dataset="a", caption="a ball"), {"route 'odd' of acme/odd": odd})

    assert caught.value.__notes__ == ["in route 'odd' of acme/odd", "for sample 'a/1'"]
