"""Python's garbage collector in long loops."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """Leave everything that is there now out of collections inside the block.

    Half a million objects of the libraries take 0.2 s to look through, in which no kernel is launched, and a step that
    waits for other processes waits for the slowest of them.
    """
    if gc.get_freeze_count():  # somebody has seen to it
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
