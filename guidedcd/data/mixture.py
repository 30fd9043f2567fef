"""The clips of a run: datasets mixed by weight, in an order that depends on the configuration only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import Any

from guidedcd.data.clips import Clip, ClipError
from guidedcd.data.contract import CheckedClips
from guidedcd.data.routing import Sample
from guidedcd.errors import GuidedCDError

TRIES = 4
"""Number of clips of a dataset that are decoded at most, to read the metadata of one."""


class Mixture:
    """`count` clips of several datasets; dataset i has a share of weight i, spread evenly over the order.

    Args:
        datasets: Sequences of clips, with the names that messages use.
        weights: Relative shares, one per dataset, positive.
        count: Number of clips.
        belongs: Whether a clip, given by its sequence and number, is one of them; others are left out where they are
            read. It may raise ClipError.

    Raises:
        GuidedCDError: A dataset has fewer clips than its share.
    """

    def __init__(
        self,
        datasets: Sequence[tuple[str, Sequence[Clip]]],
        weights: Sequence[float],
        count: int,
        belongs: Callable[[Any, int], bool] | None = None,
    ) -> None:
        self._datasets, self._belongs = datasets, belongs
        self._entries: list[tuple[int, int]] = []
        used = [0] * len(datasets)
        shares = [Fraction(weight) for weight in weights]
        for position in range(1, count + 1):
            # The dataset furthest behind its share is next, which spreads datasets evenly without randomness.
            behind = [position * share / sum(shares) - number for share, number in zip(shares, used, strict=True)]
            chosen = max(range(len(behind)), key=lambda i: behind[i])
            if used[chosen] >= len(datasets[chosen][1]):
                name, sequence = datasets[chosen]
                raise GuidedCDError(
                    f"dataset '{name}' has {len(sequence)} clips, but its share of {count} needs more. "
                    "Lower --preprocess.videos or its weight."
                )
            self._entries.append((chosen, used[chosen]))
            used[chosen] += 1

    def __len__(self) -> int:
        """Number of clips, those included that do not belong to it."""
        return len(self._entries)

    def samples(self) -> Iterator[Sample]:
        """The metadata of the clips that can be used; of a dataset that reads it with the videos, that of one clip."""
        decoded = Counter[int]()
        for dataset, number in self._entries:
            clips = self._datasets[dataset][1]
            if not isinstance(clips, CheckedClips) or decoded[dataset] == TRIES:
                continue
            with suppress(ClipError):
                decoded[dataset] += not clips.lists_samples
                sample = clips.sample(number)
                if not clips.lists_samples:
                    decoded[dataset] = TRIES
                yield sample

    def read(self, positions: range) -> tuple[list[Clip], list[dict[str, str]]]:
        """The clips at `positions`, and {"id", "reason"} of each that cannot be read."""
        clips, skipped = [], []
        for position in positions:
            dataset, number = self._entries[position]
            name, sequence = self._datasets[dataset]
            try:
                if self._belongs is None or self._belongs(sequence, number):
                    clips.append(sequence[number])
            except ClipError as error:
                skipped.append({"id": f"{name}/{number}", "reason": str(error)})
            except MemoryError:
                skipped.append({"id": f"{name}/{number}", "reason": "it does not fit into memory"})
        return clips, skipped
