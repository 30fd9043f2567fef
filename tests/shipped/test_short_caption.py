"""The routes `short-caption` and `all`."""

from __future__ import annotations

import subprocess
import sys

from guidedcd_short_caption import AllConfig, ShortCaptionConfig
from guidedcd_short_caption.route import All, ShortCaption
from hypothesis import given
from hypothesis import strategies as st

from guidedcd import Route, Sample
from guidedcd.data.routing import Reader, route
from guidedcd.plugins.registry import Component
from guidedcd.testing import checks_of

READERS = {name: Reader(length, lambda text: len(text.split()) + 2) for name, length in (("long", 77), ("short", 10))}
texts = st.lists(st.sampled_from("abc"), max_size=100).map(" ".join)


def sample(caption: str, short: str | None = None) -> Sample:
    """A sample read by two rewards, which count words."""
    return Sample(id="x", dataset="d", caption=caption, short_caption=short, readers=READERS)


@given(texts, st.none() | texts)
def test_only_rewards_that_read_the_whole_caption_are_kept(caption, short):
    """A reward stays exactly if its tokenizer's count of the caption to read is within its context."""
    result = route(sample(caption, short), [ShortCaption(ShortCaptionConfig())])
    words = len(result.caption.split()) + 2
    assert result.caption == (short or caption)
    assert result.rewards == {name for name, reader in READERS.items() if words <= reader.max_tokens}


def test_a_caption_of_exactly_the_context_fits():
    """The limit itself is inside: 10 tokens fit a context of 10, 11 do not."""
    rule = ShortCaption(ShortCaptionConfig())
    assert route(sample("w " * 8), [rule]).rewards == {"long", "short"}
    assert route(sample("w " * 9), [rule]).rewards == {"long"}


def test_the_rule_only_narrows_and_keeps_the_rest():
    """Rewards that an earlier rule took away do not return, and guidance is untouched."""
    before = Route(caption="w", rewards=frozenset({"short"}), guided=False)
    after = ShortCaption(ShortCaptionConfig())(sample("w"), before)
    assert after == before


def test_all_takes_every_reward_with_the_long_caption():
    """`all` sends a sample to every reward of the run, whatever its length."""
    result = route(sample("w " * 100, "w"), [ShortCaption(ShortCaptionConfig()), All(AllConfig())])
    assert result == Route(caption="w " * 100, rewards=frozenset(READERS))


def test_offering_imports_no_torch():
    """Importing the plugins' offers, or the routes themselves, does not import torch."""
    code = (
        "import sys, guidedcd_short_caption.route, guidedcd_hps, guidedcd_clip, guidedcd_internv2;"
        "sys.exit('torch' in sys.modules or 'open_clip' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_conformance_kit_passes():
    """They pass every conformance check of routes."""
    for name, target, config in (("short-caption", "ShortCaption", ShortCaptionConfig), ("all", "All", AllConfig)):
        component = Component("route", name, f"guidedcd_short_caption.route:{target}", config, "guidedcd/test")
        for check in checks_of(component):
            check()
