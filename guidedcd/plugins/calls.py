"""Calls of components that take long: a component that hangs is named. No torch here."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 60.0
"""Seconds after which a call is named, and again after twice, four times, ... as many."""

_calls: dict[int, list[tuple[str, float]]] = {}
"""By thread, the components whose code runs, the innermost last, each with the time of its call."""
_watch: threading.Thread | None = None
_printed: dict[tuple[int, float], float] = {}
"""By thread and time of a call, the seconds after which it is named next."""


@contextmanager
def running(whose: str) -> Iterator[None]:
    """Within this block the code of the component `whose` runs; if it takes long, a line on standard error names it."""
    global _watch
    if _watch is None:
        _watch = threading.Thread(target=_watching, name="guidedcd-calls", daemon=True)
        _watch.start()
    thread = threading.get_ident()
    calls = _calls.setdefault(thread, [])
    calls.append((whose, time.monotonic()))
    try:
        yield
    finally:
        calls.pop()
        if not calls:
            _calls.pop(thread, None)


def _watching() -> None:
    while True:
        time.sleep(PATIENCE / 4)
        for line in late(time.monotonic()):
            print(line, file=sys.stderr, flush=True)


def late(now: float) -> list[str]:
    """A line for each component whose call has run for too long and was not named lately."""
    lines = []
    current = {(thread, calls[-1][1]): calls[-1][0] for thread, calls in list(_calls.items()) if calls}
    for key in _printed.keys() - current.keys():
        del _printed[key]
    for key, whose in current.items():
        seconds = now - key[1]
        if seconds >= _printed.get(key, PATIENCE):
            lines.append(f"waiting  for {whose}, which has been running for {seconds:.0f} s; Ctrl-C ends it")
            _printed[key] = 2 * seconds
    return lines
