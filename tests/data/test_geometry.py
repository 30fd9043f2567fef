"""The shape of latents whose autoencoder compresses time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidedcd.data.geometry import Geometry
from guidedcd.errors import GuidedCDError


@given(count=st.integers(0, 40), factor=st.integers(1, 8), multiple=st.integers(1, 3))
def test_latent_frames_follow_from_the_compression_of_time(count, factor, multiple):
    """The first frame has a latent frame of its own, every `factor` others share one, and padding fills up."""
    geometry = Geometry(
        frames=count * factor + 1,
        height=32,
        width=48,
        fps=8,
        compression=16,
        temporal_compression=factor,
        latent_multiple=multiple,
    )
    assert geometry.latent_frames % multiple == 0
    assert 0 <= geometry.latent_padding < multiple
    assert geometry.latent_shape == (4, count + 1 + geometry.latent_padding, 2, 3)


def test_other_numbers_of_frames_are_refused():
    """A number of frames between two numbers of latent frames is refused with both neighbours."""
    with pytest.raises(GuidedCDError, match="16 is not. Use 13 or 17."):
        Geometry(frames=16, height=8, width=8, fps=8, temporal_compression=4)
