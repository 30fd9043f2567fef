"""Results that are computed ahead."""

from __future__ import annotations

import threading

import pytest

from guidedcd.acceleration.prefetch import prefetched


def test_prefetched_results_keep_their_order_and_errors():
    """Results come in order, one is computed while another is used, and an error is raised in its turn."""
    begun = {x: threading.Event() for x in range(1, 5)}

    def double(x: int) -> int:
        begun[x].set()
        if x == 3:
            raise KeyError(x)
        return 2 * x

    results = []
    with pytest.raises(KeyError):
        for value in prefetched(double, [1, 2, 3, 4]):
            results.append(value)
            assert begun[value // 2 + 1].wait(timeout=60)
    assert results == [2, 4]
    assert list(prefetched(double, [])) == []
