"""Buckets: their names, the nearest one of a clip, and what is cut there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import guidedcd
from guidedcd.config.bucket import Bucket
from guidedcd.config.resolve import run_from_dict
from guidedcd.data.buckets import ClipSize, placement, suggestion
from guidedcd.data.clips import ClipError
from guidedcd.data.geometry import Geometry
from guidedcd.errors import GuidedCDError

WIDE, TALL, LONG = Bucket(33, 256, 448), Bucket(17, 448, 256), Bucket(81, 256, 448)
BUCKETS = (WIDE, TALL, LONG)


def size(frames: int, height: int, width: float, **options: bool) -> ClipSize:
    """The size of a clip."""
    return ClipSize(frames=frames, height=height, width=width, **options)


@pytest.mark.parametrize(
    ("clip", "bucket", "frames_cut", "pixels_cut"),
    [
        (size(33, 256, 448), WIDE, 0, 0),
        (size(80, 512, 896), WIDE, 1 - 33 / 80, 0),
        (size(100, 512, 896), LONG, 0.19, 0),
        (size(100, 1792, 1024), TALL, 0.83, 0),
        (size(40, 448, 448), WIDE, 1 - 33 / 40, 1 - 256 / 448),  # as near to both shapes: the longer one
        (size(20, 256, 448), TALL, 0.15, 1 - (256 / 448) ** 2),  # too short for the wide ones
    ],
)
def test_a_clip_falls_into_the_nearest_bucket_that_it_fills(clip, bucket, frames_cut, pixels_cut):
    """Among buckets with no more frames than the clip, the aspect ratio decides, then the length."""
    placed = placement(clip, BUCKETS)
    assert placed.bucket == bucket
    assert placed.frames_cut == pytest.approx(frames_cut)
    assert placed.pixels_cut == pytest.approx(pixels_cut)


def test_of_equal_shapes_the_largest_that_does_not_enlarge_counts():
    """A clip takes the largest bucket of its shape that needs no enlarging, and else the smallest."""
    sizes = [Bucket(17, side, side) for side in (64, 128, 256)]
    assert placement(size(17, 200, 200), sizes).bucket == sizes[1]
    smallest = placement(size(17, 32, 32), sizes)
    assert smallest.bucket == sizes[0] and smallest.enlarged == 2.0


def test_a_clip_that_is_too_short_for_all_names_the_shortest():
    """A clip that fills no bucket is unusable, with its frames and those of the shortest bucket."""
    with pytest.raises(
        ClipError, match="too short: 12 frames at the teacher's frame rate, every bucket has 17 or more"
    ):
        placement(size(12, 256, 448), BUCKETS)


def test_latents_need_a_bucket_of_exactly_their_size():
    """Latents are neither cropped nor shortened."""
    assert placement(size(17, 448, 256, encoded=True), BUCKETS).bucket == TALL
    with pytest.raises(ClipError, match="latents of 34 frames of 256x448, the size of no bucket"):
        placement(size(34, 256, 448, encoded=True), BUCKETS)


@given(
    frames=st.integers(1, 200),
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    buckets=st.lists(
        st.builds(Bucket, st.integers(1, 99), st.integers(8, 512), st.integers(8, 512)), min_size=1, unique=True
    ),
)
def test_a_clip_fills_its_bucket_and_loses_the_fewest_pixels(frames, height, width, buckets):
    """A clip has at least its bucket's frames, no other filled bucket cuts fewer pixels, and order does not matter."""
    clip = size(frames, height, width)
    if frames < min(bucket.frames for bucket in buckets):
        with pytest.raises(ClipError):
            placement(clip, buckets)
        return
    placed = placement(clip, buckets)
    assert placed == placement(clip, buckets[::-1])
    assert placed.bucket.frames <= frames and 0 <= placed.frames_cut < 1 and 0 <= placed.pixels_cut < 1
    for bucket in buckets:
        if bucket.frames <= frames:
            assert placed.pixels_cut <= placement(clip, [bucket]).pixels_cut + 1e-8


def test_a_bucket_is_suggested_for_clips_that_the_others_do_not_suit():
    """Portrait clips among wide buckets give a valid portrait bucket; clips that fit give none."""
    geometry = Geometry(frames=33, height=256, width=448, fps=16, channels=16, temporal_compression=4)
    portraits = [size(60, 1920, 1080)] * 5
    assert suggestion(portraits, [WIDE], geometry, 16) == Bucket(33, 448, 256)
    assert suggestion([size(20, 256, 448)] * 5, [WIDE], geometry, 16) == Bucket(17, 256, 448)
    assert suggestion([size(60, 720, 1280)] * 5, [WIDE], geometry, 16) is None
    assert suggestion([*[size(60, 720, 1280)] * 10, size(3, 720, 1280)], [WIDE], geometry, 16) is None


@pytest.mark.parametrize("text", ["33x256", "33x256x448x1", "0x256x448", "ax1x1", ""])
def test_other_words_are_no_bucket(text):
    """A bucket of another form is one sentence with an example."""
    with pytest.raises(GuidedCDError, match="FRAMESxHEIGHTxWIDTH, such as 33x256x448"):
        Bucket.parse(text)


def test_the_option_takes_different_buckets():
    """--preprocess.buckets is checked as the options are read, and the same bucket twice is refused."""
    run = guidedcd.Run.from_profile("shapes", preprocess={"buckets": ["16x32x32", "8x32x32"]})
    assert run.preprocess.buckets == ("16x32x32", "8x32x32")
    for buckets in (["16x32"], ["16x32x32", "16x32x32"]):
        with pytest.raises(GuidedCDError, match="buckets"):
            run_from_dict(run.to_dict() | {"preprocess": {"buckets": buckets}})


def test_the_geometry_follows_from_latents():
    """The frames and pixels of latents of another size follow from the autoencoder, with its padding."""
    geometry = Geometry(frames=9, height=32, width=48, fps=16, channels=4, temporal_compression=4, latent_multiple=2)
    assert geometry.of_latents(geometry.latent_shape) == geometry
    other = geometry.of_latents((2, 4, 6, 8, 2))
    assert (other.frames, other.height, other.width) == (17, 64, 16)
