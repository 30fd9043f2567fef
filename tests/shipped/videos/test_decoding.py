"""From a video file to the teacher's frames: which frames, which way up, how large, and what is refused."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
import video_files
from guidedcd_videos.decoding import Timeline, read_clip, read_size
from guidedcd_videos.frames import upright
from hypothesis import given, settings
from hypothesis import strategies as st

from guidedcd.data.clips import ClipError
from guidedcd.data.framing import cover
from guidedcd.data.geometry import Geometry

GEOMETRY = Geometry(frames=4, height=16, width=16, fps=8)


def numbers(content: bytes, *, fps: float = 8, begin: float = 0, slow: bool = False, frames: int = 4) -> list[int]:
    """Which of `video_files.picture` were taken, read from their grey."""
    geometry = Geometry(frames=frames, height=16, width=16, fps=8)
    clip = read_clip(content, geometry, fps=fps, begin=begin, slow=slow)
    assert clip.shape == geometry.pixel_shape
    return [round((float(frame.mean()) * 255 - 4) / 8) for frame in clip]


@pytest.mark.parametrize(
    ("kind", "codec"),
    [("mp4", "libx264"), ("matroska", "libx264"), ("webm", "libvpx"), ("avi", "mpeg4"), ("h264", "libx264")],
)
def test_frames_are_taken_at_the_target_rate(kind, codec):
    """Of 24 frames per second, 8 per second are every third one, in every container, with timestamps or without."""
    content = video_files.video(24, fps=24, kind=kind, codec=codec)

    assert numbers(content) == [0, 3, 6, 9]
    assert numbers(content, fps=4) == [0, 6, 12, 18]


def test_the_part_of_a_long_video_is_chosen():
    """The first moment is at the requested fraction of the spare time; a video without spare time is used in full."""
    content = video_files.video(24, fps=24)

    assert numbers(content, begin=0.5) == [6, 9, 12, 15]
    assert numbers(content, begin=1) == [12, 15, 18, 21]
    assert numbers(video_files.video(4, fps=8), begin=1) == [0, 1, 2, 3]


def test_variable_frame_rate_is_followed():
    """At each moment the frame is taken that is then on the screen: long ones repeat, crowded ones are passed over."""
    times = [500, 520, 540, 560, 900, 910, 920, 1290]  # the first frame is the beginning, whatever its timestamp

    # Moments 0, 125, 250, 375, 500, 625, 750 ms after the first: 625 ms shows 900 ms, and so on.
    assert numbers(video_files.video(8, times=times, fps=1000), frames=7) == [0, 3, 3, 3, 6, 6, 6]


@settings(max_examples=200, deadline=None)
@given(
    gaps=st.lists(st.integers(1, 400), min_size=1, max_size=30),
    begin=st.floats(0, 1),
    fps=st.sampled_from([4, 8, 10]),
    count=st.integers(1, 6),
)
def test_every_moment_shows_the_frame_that_began_last(gaps, begin, fps, count):
    """The chosen frames are ascending, real, and each began before its moment while the following one had not."""
    ticks = np.cumsum([0, *gaps[:-1]])
    timeline = Timeline(ticks, gaps[-1], 1e-3)
    if sum(gaps) < count / fps * 1000 + 2:
        return
    chosen = timeline.choose(count, fps, begin)

    ends = dict(zip(ticks.tolist(), [*ticks[1:].tolist(), sum(gaps)], strict=True))
    for k, tick in enumerate(chosen.tolist()):
        moment = chosen[0] + k * 1000 / fps
        assert tick <= moment + 0.5 < ends[tick] + 1


def test_a_short_video_is_refused_or_slowed():
    """A video that is too short is refused; `slow` spreads the moments over it if it has enough frames."""
    content = video_files.video(6, fps=24)

    with pytest.raises(ClipError, match=r"too short: 0.25 s with 6 frames, but 4 frames at 8 per second take 0.5 s"):
        numbers(content)
    assert numbers(content, slow=True) == [0, 1, 3, 4]
    with pytest.raises(ClipError, match="too short"):
        numbers(video_files.video(3, fps=24), slow=True)


@pytest.mark.parametrize("kind", video_files.BROKEN)
def test_a_damaged_file_is_a_clip_error_with_its_reason(kind, tmp_path):
    """Every kind of damage is a ClipError with its reason, which does not name a path of this machine."""
    make, reason = video_files.BROKEN[kind]
    path = tmp_path / "x.mp4"
    video_files.write(path, make())

    with pytest.raises(ClipError, match=f"^({reason})") as error:
        read_clip(path, GEOMETRY, fps=8, begin=0.5)
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_file_that_ends_early_is_refused(share):
    """An incomplete download is refused, even if it has the frames that are needed."""
    content = video_files.noisy(24)

    with pytest.raises(ClipError, match="damaged|cut off"):
        read_clip(content[: int(len(content) * share)], GEOMETRY, fps=8, begin=0)


@pytest.mark.parametrize("seed", range(4))
def test_damage_inside_a_file_is_detected(seed):
    """Where bytes in the middle of the pictures are overwritten, the decoder's repair is not taken for the picture."""
    content, random = bytearray(video_files.noisy()), np.random.default_rng(seed)
    at = random.integers(len(content) // 3, len(content) - 600)
    content[at : at + 500] = random.bytes(500)

    with pytest.raises(ClipError, match="damaged"):
        read_clip(bytes(content), Geometry(frames=12, height=16, width=16, fps=8), fps=8, begin=0)


def corners() -> np.ndarray:
    """A picture (24, 32, 3) whose four quarters are grey 40, 90, 140, 190: upper left, upper right, lower left, ..."""
    quarters = np.array([[40, 90], [140, 190]], np.uint8).repeat(12, 0).repeat(16, 1)
    return np.repeat(quarters[..., None], 3, axis=2)


def test_a_phone_held_upright_gives_an_upright_video():
    """A display matrix of a quarter turn clockwise turns the picture: the lower left comes to the upper left."""
    content = video_files.video([corners()] * 4, matrix=video_files.QUARTER_TURN)

    frame = read_clip(content, Geometry(frames=4, height=32, width=24, fps=8), fps=8, begin=0)[0, 0] * 255
    seen = [float(frame[y, x]) for y, x in itertools.product((8, 24), (6, 18))]
    assert seen == pytest.approx([140, 40, 190, 90], abs=3)


@pytest.mark.parametrize(
    "matrix",
    [
        m
        for m in itertools.product((-1, 0, 1), repeat=4)
        if abs(np.linalg.det(np.reshape(m, (2, 2)))) == 1 and m.count(0) == 2
    ],
)
def test_all_eight_orientations(matrix):
    """Every quarter turn, mirrored or not, moves pixels by the matrix: (x', y') = (a x + c y, b x + d y)."""
    (a, b), (c, d) = np.reshape(matrix, (2, 2))
    image = np.arange(2 * 3 * 3).reshape(2, 3, 3)
    turned, swapped = upright(image, np.reshape(matrix, (2, 2)).astype(float))

    moved = {(a * x + c * y, b * x + d * y): image[y, x, 0] for y in range(2) for x in range(3)}
    left, top = min(x for x, _ in moved), min(y for _, y in moved)
    for (x, y), value in moved.items():
        assert turned[y - top, x - left, 0] == value
    assert swapped is bool(a == 0)


def test_the_middle_is_kept_and_proportions_with_it():
    """A picture twice as wide as the target loses a quarter on each side, and nothing is stretched."""
    ramp = torch.linspace(0, 1, 64).expand(3, 32, 64)
    middle = cover(ramp, 32, 32)

    assert torch.equal(middle, ramp[..., 16:48])
    assert cover(ramp, 16, 32).shape == (3, 16, 32)
    assert torch.allclose(cover(ramp, 16, 16)[0, 0], ramp[0, 0, 16:48].view(16, 2).mean(1), atol=1e-2)


def test_shrinking_does_not_alias():
    """Stripes finer than the target's pixels become grey, not other stripes."""
    stripes = torch.tensor([0.0, 1.0]).repeat(48).expand(3, 96, 96)

    small = cover(stripes, 13, 13)[..., 1:-1]
    assert float((small - 0.5).abs().max()) < 0.1


def test_pixels_that_are_not_square_are_scaled_to_squares():
    """A 16 x 32 picture of pixels twice as wide as high is square: all of it is used."""
    image = np.zeros((32, 16, 3), np.uint8)
    image[:, :4], image[:, 12:] = 255, 255
    content = video_files.video([image] * 4, aspect=Fraction(2, 1))

    row = read_clip(content, GEOMETRY, fps=8, begin=0)[0, 0, 8]
    assert row[:3].min() > 0.9 and row[13:].min() > 0.9 and row[6:10].max() < 0.1


@given(
    gaps=st.lists(st.integers(1, 400), min_size=1, max_size=30),
    fps=st.sampled_from([1.0, 7.5, 8.0, 16.0, 23.976, 30.0]),
)
@settings(deadline=None)
def test_the_number_of_frames_is_the_largest_that_can_be_chosen(gaps, fps):
    """A video is as long as the longest choice of frames from it that is not refused."""
    timeline = Timeline(np.cumsum([0, *gaps[:-1]]), gaps[-1], 1e-3)
    count = timeline.frames(fps)
    if count:
        timeline.choose(count, fps, 0.0)
    with pytest.raises(ClipError, match="too short"):
        timeline.choose(count + 1, fps, 0.0)


def test_the_size_of_a_video_is_that_which_is_shown():
    """Sizes are those of the upright picture with square pixels, at the rate at which frames are taken."""
    size = read_size(video_files.video(12, fps=8), fps=8)
    assert (size.frames, size.height, size.width) == (12, 24, 32)
    assert read_size(video_files.video(12, fps=8), fps=4).frames == 6
    assert read_size(video_files.video(12, fps=16), fps=8, slow=True).frames == 12
    turned = read_size(video_files.video([corners()] * 4, matrix=video_files.QUARTER_TURN), fps=8)
    assert (turned.height, turned.width) == (32, 24)
    wide = read_size(video_files.video(4, aspect=Fraction(2, 1)), fps=8)
    assert (wide.height, wide.width) == (24, 64)
    with pytest.raises(ClipError, match="damaged or no video"):
        read_size(b"no video", fps=8)
