"""The largest batch size that fits into memory, from counts of a few batch sizes."""

from __future__ import annotations

import math
from collections.abc import Callable

LARGEST_BATCH = 4096
"""Batch sizes above are not predicted."""
COUNTS = 4
"""Batch sizes that are counted to narrow the range of the largest one."""


def largest_batch(peak: Callable[[int], float], room: float, batch: int) -> int:
    """The largest batch size whose peak of memory is at most `room` bytes, at most `LARGEST_BATCH`.

    The peak is the largest of several moments of a step. Each of them is linear in the batch size, and some do not
    depend on it. Hence a line through two batch sizes promises too much outside of them, and too little between them:
    what it promises is counted, and gives the next line.

    Args:
        peak: The bytes for a batch size of at least 1.
        room: Bytes that may be used.
        batch: The batch size at which the search begins, at least 1.
    """
    first = (batch, peak(batch))
    if first[1] > room:
        fits, over = (1, peak(1)) if batch > 1 else first, first
        if fits[1] > room:
            return 0
    else:
        other = max(batch + 1, int(batch * min(room / first[1], 4.0)))  # larger batches take longer to count
        fits, over = first, (other, peak(other))
        if over[1] <= room:
            slope = (over[1] - first[1]) / (other - batch)
            promised = other + (room - over[1]) / slope if slope > 1 else LARGEST_BATCH
            fits, other = over, min(math.floor(promised), LARGEST_BATCH)
            if other == fits[0]:
                return other
            over = (other, peak(other))
            if over[1] <= room:
                return other
    for _ in range(COUNTS):
        if over[0] - fits[0] <= 1 + fits[0] // 20:
            break
        promised = fits[0] + (over[0] - fits[0]) * (room - fits[1]) / (over[1] - fits[1])
        other = min(max(math.floor(promised), fits[0] + 1), over[0] - 1)
        here = (other, peak(other))
        fits, over = (here, over) if here[1] <= room else (fits, here)
    return fits[0]
