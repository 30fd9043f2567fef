"""Mistakes of the user: one line on the terminal, exit status 2. Anything else is a bug and keeps its traceback."""


class GuidedCDError(Exception):
    """Says what is wrong, where, and what to do about it, in one clear sentence."""


class PluginError(GuidedCDError):
    """A plugin cannot be found, loaded or told apart from another."""
