"""The bucket into which a clip falls, and what is cut from it there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import attrs

from guidedcd.config.bucket import Bucket
from guidedcd.data.clips import ClipError
from guidedcd.data.geometry import Geometry
from guidedcd.docstrings import documented


@documented
@attrs.frozen(kw_only=True)
class ClipSize:
    """The size of a clip before it is cut to a teacher's."""

    frames: int
    """Frames that it has at the teacher's frame rate."""
    height: int
    """Pixels, as it is shown."""
    width: float
    """Pixels, as it is shown; those of a square shape where the file's are not square."""
    encoded: bool = False
    """Whether the clip is latents, which can be neither cropped nor shortened."""


@attrs.frozen(kw_only=True)
class Placement:
    """A clip in its bucket."""

    bucket: Bucket
    frames_cut: float
    """Share of the clip's frames that is left out, in [0, 1)."""
    pixels_cut: float
    """Share of the area of its frames that is cropped, in [0, 1)."""
    enlarged: float
    """Factor by which its frames are enlarged; at most 1 where they are reduced."""


def bucket_of(geometry: Geometry) -> Bucket:
    """The size of a teacher's videos as a bucket."""
    return Bucket(geometry.frames, geometry.height, geometry.width)


def placement(size: ClipSize, buckets: Sequence[Bucket]) -> Placement:
    """The bucket of a clip: of those with no more frames than it, the nearest in aspect ratio, then the longest.

    Of equal ones that with the most pixels counts which does not enlarge the frames, and otherwise the smallest.
    Latents fall into the bucket of exactly their size.

    Raises:
        ClipError: The clip fits no bucket.
    """
    if size.encoded:
        own = Bucket(size.frames, size.height, round(size.width))
        if own not in buckets:
            raise ClipError(f"has latents of {own.frames} frames of {own.height}x{own.width}, the size of no bucket")
        return Placement(bucket=own, frames_cut=0.0, pixels_cut=0.0, enlarged=1.0)
    short = [bucket for bucket in buckets if bucket.frames <= size.frames]
    if not short:
        fewest = min(bucket.frames for bucket in buckets)
        raise ClipError(
            f"too short: {size.frames} frames at the teacher's frame rate, every bucket has {fewest} or more"
        )
    bucket = min(short, key=lambda one: _distance(size, one))
    across = _aspects(size, bucket)
    return Placement(
        bucket=bucket,
        frames_cut=1 - bucket.frames / size.frames,
        pixels_cut=1 - math.exp(-abs(across)),
        enlarged=_scale(size, bucket),
    )


def _aspects(size: ClipSize, bucket: Bucket) -> float:
    """Logarithm of the ratio of two aspect ratios."""
    return math.log(size.width / size.height * bucket.height / bucket.width)


def _scale(size: ClipSize, bucket: Bucket) -> float:
    """Factor that makes the clip's frames cover the bucket's."""
    return max(bucket.height / size.height, bucket.width / size.width)


def _distance(size: ClipSize, bucket: Bucket) -> tuple[float, int, bool, int]:
    """The smaller, the better the bucket."""
    pixels, enlarges = bucket.height * bucket.width, _scale(size, bucket) > 1
    return round(abs(_aspects(size, bucket)), 9), -bucket.frames, enlarges, pixels if enlarges else -pixels


def suggestion(sizes: Iterable[ClipSize], buckets: Sequence[Bucket], geometry: Geometry, sides: int) -> Bucket | None:
    """A further bucket for clips that are too short, or from which much is cut; None if the buckets serve them.

    It has the median length and aspect ratio of these clips, and about as many pixels as the first bucket.

    Args:
        sizes: The clips, those of latents left out.
        buckets: The buckets.
        geometry: The teacher's videos, for valid numbers of frames.
        sides: Heights and widths are multiples of this.
    """
    poor: list[ClipSize] = []
    total = 0
    for size in sizes:
        total += 1
        try:
            is_poor = placement(size, buckets).pixels_cut > MUCH
        except ClipError:
            is_poor = True
        poor += [size] if is_poor else []
    if len(poor) <= FEW * total:
        return None
    lengths = sorted(size.frames for size in poor)
    aspects = sorted(size.width / size.height for size in poor)
    step = geometry.temporal_compression * geometry.latent_multiple
    longest = max(bucket.frames for bucket in buckets)
    frames = min(lengths[len(lengths) // 4], longest)  # three quarters of the clips are at least as long
    frames = (frames - 1) // step * step + 1
    area, aspect = buckets[0].height * buckets[0].width, aspects[len(aspects) // 2]
    height, width = (
        max(1, round(side / sides)) * sides for side in (math.sqrt(area / aspect), math.sqrt(area * aspect))
    )
    bucket = Bucket(frames, height, width)
    return bucket if frames >= step + 1 and bucket not in buckets else None


MUCH = 0.25
"""Share of a clip's pixels; a bucket that cuts more of it does not suit it."""
FEW = 0.1
"""Share of the clips; for fewer no bucket is suggested."""
