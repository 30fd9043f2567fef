"""Mixing datasets by weight."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guidedcd.data.clips import Clip, ClipError
from guidedcd.data.contract import CheckedClips
from guidedcd.data.geometry import Geometry
from guidedcd.data.mixture import Mixture
from guidedcd.data.routing import Sample
from guidedcd.errors import GuidedCDError


class Broken(list):
    """A dataset whose every third clip cannot be read."""

    def __getitem__(self, place):
        if place % 3 == 2:
            raise ClipError("no video stream")
        return super().__getitem__(place)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 40))
def test_shares_hold_in_every_prefix(weights, count):
    """At every point of the order each dataset is within one clip of its share."""
    sets = [(str(i), [(i, n) for n in range(100)]) for i in range(len(weights))]
    mixture = Mixture(sets, weights, count)

    clips, _ = mixture.read(range(count))

    for length in range(1, count + 1):
        used = Counter(i for i, _ in clips[:length])
        for i, weight in enumerate(weights):
            assert abs(used[i] - length * weight / sum(weights)) < len(weights)
    assert len(set(clips)) == count


def test_unreadable_clips_are_counted_with_their_reason():
    """A clip that cannot be read is left out and listed, never replaced in silence."""
    mixture = Mixture([("web", Broken("abcdef"))], [1], 6)

    clips, skipped = mixture.read(range(6))

    assert clips == ["a", "b", "d", "e"]
    assert skipped == [{"id": f"web/{n}", "reason": "no video stream"} for n in (2, 5)]


def test_too_small_dataset_is_refused():
    """Asking for more clips than a dataset holds names the dataset and the option to lower."""
    with pytest.raises(GuidedCDError, match=r"'web' has 3 clips.*`preprocess\.videos`"):
        Mixture([("web", list("abc"))], [1], 4)


class Unseen(list):
    """Clips that cannot be read, with metadata; every third clip has none."""

    def sample(self, index):
        if index % 3 == 2:
            raise ClipError("no caption")
        return Sample(id=self[index], dataset="web", caption="a ball")


class Decoded(list):
    """A dataset without metadata: a clip is decoded when it is read, and the first cannot be."""

    def __getitem__(self, index):
        self.tried = [*getattr(self, "tried", ()), index]
        if index == 0:
            raise ClipError("no video stream")
        return Clip(id=super().__getitem__(index), dataset="own", caption="a ball", video=torch.zeros(1, 3, 2, 2))


def test_metadata_of_all_clips_is_read_without_their_videos():
    """A dataset that lists it gives that of each usable clip; of another dataset one clip is decoded."""
    geometry, decoded = Geometry(frames=1, height=2, width=2, fps=8), Decoded("uvwxyz")
    sets = [("web", CheckedClips(Unseen("abcdef"), geometry, "web")), ("own", CheckedClips(decoded, geometry, "own"))]

    ids = [sample.id for sample in Mixture(sets, [1, 1], 12).samples()]

    assert sorted(ids) == ["a", "b", "d", "e", "v"]
    assert decoded.tried == [0, 1]
