"""The largest batch size that fits, from counted peaks of memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from guidedcd.planning.largest_batch import COUNTS, LARGEST_BATCH, largest_batch


@given(
    fixed=st.floats(1, 100),
    moments=st.lists(st.tuples(st.floats(0, 80), st.floats(0.01, 30)), min_size=1, max_size=3),
    room=st.floats(2, 1000),
    batch=st.integers(1, 12),
)
def test_it_fits_and_is_found_with_few_counts(fixed, moments, room, batch):
    """The batch fits, is 0 only where one sample does not fit, and needs at most eight counts."""
    counted = []

    def peak(size: int) -> float:
        counted.append(size)
        return 1e9 * max(fixed, *(constant + slope * size for constant, slope in moments))

    largest = largest_batch(peak, 1e9 * room, batch)
    asked = len(counted)

    assert (largest == 0) == (peak(1) > 1e9 * room)
    assert largest == 0 or (largest <= LARGEST_BATCH and peak(largest) <= 1e9 * room)
    assert asked <= 4 + COUNTS


@given(constant=st.floats(0, 50), slope=st.floats(0.01, 30), room=st.floats(60, 1000), batch=st.integers(1, 12))
def test_of_a_line_it_is_exact(constant, slope, room, batch):
    """Where memory is linear in the batch size, the next batch size does not fit."""
    largest = largest_batch(lambda size: 1e9 * (constant + slope * size), 1e9 * room, batch)
    assert largest in (0, LARGEST_BATCH) or constant + slope * (largest + 1) > room * (1 - 1e-9)


def test_a_peak_that_does_not_grow_at_first():
    """Memory that is constant up to a batch of 70 does not promise batches without end."""
    largest = largest_batch(lambda size: 1e9 * max(39, 4 + 0.5 * size), 74e9, 1)
    assert 126 <= largest <= 140
