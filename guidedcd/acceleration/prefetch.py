"""Work that is done while its result before is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`function` of each item, in order; while one result is used, a thread makes the next. Errors come in their turn.

    For reading files and making noise beside an accelerator: both leave Python's lock.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming = None
        for item in items:
            following = thread.submit(function, item)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()
