"""Sequences whose items are computed when they are read. No torch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, overload

T = TypeVar("T", covariant=True)


class LazySequence(Sequence[T]):
    """A sequence that computes an item each time it is read; a slice is a list.

    Subclasses define `__len__` and `read`. Negative indices are refused.
    """

    @abstractmethod
    def read(self, index: int) -> T:
        """Compute item `index`, 0 <= index < len(self)."""

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> T | list[T]:
        """Compute one item, or the items of a slice."""
        if isinstance(index, slice):
            return [self.read(number) for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.read(index)
