"""Sequences whose items are computed when they are read."""

from __future__ import annotations

import pytest

from guidedcd.data.lazy_sequence import LazySequence


class Squares(LazySequence[int]):
    """The squares of 0 to 4; `log` lists what was computed."""

    def __init__(self) -> None:
        """Nothing is computed yet."""
        self.log: list[int] = []

    def __len__(self) -> int:
        """Five."""
        return 5

    def read(self, index: int) -> int:
        """The square of `index`."""
        self.log.append(index)
        return index**2


def test_only_the_items_that_are_read_are_computed():
    """An index computes one item, a slice those of the slice, an iteration all."""
    squares = Squares()

    assert squares[3] == 9 and squares.log == [3]
    assert squares[1:3] == [1, 4] and squares.log == [3, 1, 2]
    assert list(squares) == [0, 1, 4, 9, 16]


@pytest.mark.parametrize("index", [-1, 5])
def test_an_index_outside_is_refused(index):
    """Neither a negative index nor one past the end is read."""
    squares = Squares()

    with pytest.raises(IndexError):
        squares[index]
    assert squares.log == []
