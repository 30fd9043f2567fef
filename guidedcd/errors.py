"""Mistakes of the user: one line on the terminal, exit status 2. Anything else is a bug and keeps its traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GuidedCDError(Exception):
    """Says what is wrong, where, and what to do about it, in one clear sentence."""


class PluginError(GuidedCDError):
    """A plugin cannot be found, loaded or told apart from another."""


def suggest(name: str, known: Iterable[str]) -> str:
    """ " Did you mean 'x'?" for the closest of `known`, or nothing."""
    near = difflib.get_close_matches(name.lower(), list(known), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""
