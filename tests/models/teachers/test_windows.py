"""Windows of latent frames: which latent frames are decoded for the frames that are read."""

from __future__ import annotations

import itertools

import pytest

from guidedcd.models.teachers.windows import Window, latent_frame, windows

SHAPES = [(9, 4, 1, True), (9, 4, 2, True), (8, 4, 2, True), (7, 8, 1, False), (5, 1, 1, True)]
"""Latent frames, frames per latent frame, latent frames decoded at once, and whether the autoencoder is causal."""


def test_a_latent_frame_is_of_one_frame_at_first_and_of_several_later():
    """Frame 0 is of latent frame 0 alone, and frames 1 to t of latent frame 1."""
    assert [latent_frame(frame, 4) for frame in (0, 1, 4, 5, 32)] == [0, 1, 1, 2, 8]
    assert [latent_frame(frame, 1) for frame in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize(("total", "temporal", "together", "causal"), SHAPES)
@pytest.mark.parametrize("size", range(2, 12))
def test_every_frame_is_decoded_once_with_its_context(total, temporal, together, causal, size):
    """Exactly one window decodes a frame, it begins before the frame's latent frame, and its index there is right."""
    frames = range((total - 1) * temporal + 1)
    for frame in frames:
        (one,) = windows([frame], size, total, temporal, together=together, causal=causal)
        own = [other for other in frames if one.contains(other, temporal)]
        assert frame in own
        assert 0 <= one.start < one.stop <= total
        count = (one.stop - one.start - 1) * temporal + 1
        assert one.frame(own[-1], temporal) == count - 1
        assert own == list(range(own[0], own[-1] + 1)) and own[0] - one.start * temporal == (one.start > 0)
        if one != Window(0, total) and causal and one.stop >= size:
            assert one.stop - one.start >= size
    pairs = windows([frames[0], frames[-1]], size, total, temporal, together=together, causal=causal)
    assert all(a.stop < b.start for a, b in itertools.pairwise(pairs))


@pytest.mark.parametrize(("total", "temporal", "together", "causal"), SHAPES)
def test_windows_divide_a_video_as_the_autoencoder_does(total, temporal, together, causal):
    """A window's latent frames are decoded at once in the same groups as in the whole video, but for its context."""
    if together == 1:
        return
    ends = set(range(together + total % together, total + 1, together))
    for frame in range((total - 1) * temporal + 1):
        (one,) = windows([frame], 3, total, temporal, together=together)
        assert one.stop in ends
        assert (one.stop - one.start) % together == total % together


def test_windows_that_touch_are_one():
    """Latent frames of two windows that overlap or touch are decoded once, with the context of both."""
    assert windows([9, 13], 2, 9, 4) == [Window(2, 5)]
    assert windows([5, 13], 2, 9, 4) == [Window(1, 5)]
    assert windows([5, 17], 2, 9, 4) == [Window(1, 3), Window(4, 6)]


def test_a_window_of_all_latent_frames_is_the_video():
    """From as many latent frames as the video has, the window is the video."""
    assert windows([3], 9, 9, 4) == windows([3], 50, 9, 4) == [Window(0, 9)]
