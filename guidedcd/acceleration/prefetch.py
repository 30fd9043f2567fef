"""Computing the next result in a thread while the caller uses the current one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetched(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield `function` of each item, in order, while a thread computes the next one.

    An error is raised when its item's turn comes. For work that releases Python's lock, such as reading files and
    drawing noise.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        pending = None
        for item in items:
            submitted = thread.submit(function, item)
            if pending is not None:
                yield pending.result()
            pending = submitted
        if pending is not None:
            yield pending.result()
