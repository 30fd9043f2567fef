"""Which clips a run uses: datasets mixed by weight, in an order that depends on nothing but the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from guidedcd.data.clips import Clip, ClipError
from guidedcd.errors import GuidedCDError


class Mixture:
    """`count` clips of several datasets; dataset i holds a share of weight i, spread evenly over the order.

    Args:
        datasets: Sequences of clips, with the names that messages use.
        weights: Relative shares, one per dataset, positive.
        count: How many clips in all.

    Raises:
        GuidedCDError: The datasets hold fewer clips than their shares.
    """

    def __init__(self, datasets: Sequence[tuple[str, Sequence[Clip]]], weights: Sequence[float], count: int) -> None:
        self._datasets = datasets
        self._places: list[tuple[int, int]] = []
        used = [0] * len(datasets)
        shares = [Fraction(weight) for weight in weights]
        for place in range(1, count + 1):
            # The dataset that lags most behind its share: an order without clumps and without randomness.
            owed = [place * share / sum(shares) - taken for share, taken in zip(shares, used, strict=True)]
            chosen = max(range(len(owed)), key=lambda i: owed[i])
            if used[chosen] >= len(datasets[chosen][1]):
                name, sequence = datasets[chosen]
                raise GuidedCDError(
                    f"dataset '{name}' has {len(sequence)} clips, but its share of {count} needs more. "
                    "Lower --preprocess.videos or its weight."
                )
            self._places.append((chosen, used[chosen]))
            used[chosen] += 1

    def __len__(self) -> int:
        """How many clips."""
        return len(self._places)

    def read(self, places: range) -> tuple[list[Clip], list[dict[str, str]]]:
        """The clips at `places`, and what could not be read with its reason."""
        clips, skipped = [], []
        for place in places:
            dataset, number = self._places[place]
            name, sequence = self._datasets[dataset]
            try:
                clips.append(sequence[number])
            except ClipError as error:
                skipped.append({"id": f"{name}/{number}", "reason": str(error)})
            except MemoryError:
                skipped.append({"id": f"{name}/{number}", "reason": "it does not fit into memory"})
        return clips, skipped
