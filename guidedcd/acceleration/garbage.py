"""Python's garbage collector in long loops."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

_is_settled = False
"""Whether a block is active; the count of frozen objects does not tell, since Python 3.12 starts with some."""


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """Leave all existing objects out of collections inside the block; blocks may be nested.

    A collection of half a million objects of the libraries takes 0.2 s. It launches no kernel meanwhile, and a step
    that waits for other processes waits for the slowest of them.
    """
    global _is_settled
    if _is_settled:
        yield
        return
    gc.collect()
    gc.freeze()
    _is_settled = True
    try:
        yield
    finally:
        gc.unfreeze()
        _is_settled = False
