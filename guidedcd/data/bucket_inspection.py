"""What falls into which bucket: the clips of a data set in the sizes of their buckets, and a table of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from rich.table import Table

from guidedcd.config.bucket import Bucket
from guidedcd.config.kinds import Chosen
from guidedcd.config.structure import changed
from guidedcd.console import console, plain_table, print_table
from guidedcd.data.buckets import ClipSize, Placement, placement, suggestion
from guidedcd.data.clips import Clip, ClipError
from guidedcd.data.contract import opened
from guidedcd.data.geometry import Geometry
from guidedcd.data.lazy_sequence import LazySequence
from guidedcd.devices import blame_memory
from guidedcd.errors import GuidedCDError

SIDES = 2
"""Sides of a suggested bucket are multiples of this many latents: networks join patches of two."""


def sized(teacher: Chosen, bucket: Bucket) -> Chosen:
    """The choice of a teacher with the size of a bucket as its options.

    Raises:
        GuidedCDError: It has no options for the size of its videos.
    """
    if not all(hasattr(teacher.config, name) for name in ("frames", "height", "width")):
        raise GuidedCDError(
            f"--preprocess.buckets: the teacher '{teacher.name}' has no options frames, height and width, so its "
            "videos have one size: leave the buckets out."
        )
    options = {"frames": bucket.frames, "height": bucket.height, "width": bucket.width}
    return Chosen(teacher.name, changed(teacher.config, **options))


def geometries(teacher: Chosen, buckets: Sequence[str]) -> dict[Bucket, Geometry]:
    """The shape of a teacher's videos in each bucket; no weights are loaded.

    Raises:
        GuidedCDError: The teacher has one size only, or a bucket is not possible.
    """
    shapes = {}
    for bucket in map(Bucket.parse, buckets):
        with blame_memory("the teacher"):
            shapes[bucket] = sized(teacher, bucket).outline().geometry
    return shapes


class PlacedClips(LazySequence[Clip]):
    """The clips of a data set, each in the size of its bucket.

    Args:
        chosen: The data set.
        geometries: The teacher's videos by bucket.
    """

    def __init__(self, chosen: Chosen, geometries: Mapping[Bucket, Geometry]) -> None:
        self._clips = {bucket: opened(chosen, geometry) for bucket, geometry in geometries.items()}
        self.buckets = list(geometries)
        self.sizes: list[ClipSize] = []
        """Of the clips that were read, as far as they state one."""
        self.placements: list[Placement] = []
        """Of those that fit a bucket."""
        self.dropped: list[str] = []
        """Why the others fit none."""

    def __len__(self) -> int:
        """Number of clips."""
        return len(self._clips[self.buckets[0]])

    def read(self, index: int) -> Clip:
        """The clip, which is also counted.

        Raises:
            ClipError: It cannot be used, or fits no bucket.
        """
        size = self._clips[self.buckets[0]].size(index)
        self.sizes.append(size)
        try:
            placed = placement(size, self.buckets)
        except ClipError as error:
            self.dropped.append(str(error))
            raise
        self.placements.append(placed)
        return self._clips[placed.bucket][index]


def print_buckets(datasets: Mapping[str, PlacedClips], geometry: Geometry) -> None:
    """Print how many of the clips that were read fall into each bucket, what is cut there, and a better bucket.

    Args:
        datasets: The clips by the data set's name.
        geometry: The teacher's videos in the first bucket.
    """
    print_table(_table(datasets))
    for name, clips in datasets.items():
        sides = SIDES * geometry.compression
        better = suggestion([size for size in clips.sizes if not size.encoded], clips.buckets, geometry, sides)
        if better is not None:
            console.print(f"suggest  {name}: a bucket {better} suits the clips that are dropped or cropped most")
    console.print()


def _table(datasets: Mapping[str, PlacedClips]) -> Table:
    columns = ("clips", "share", "frames cut", "pixels cut", "enlarged")
    table = plain_table("data", "bucket", *columns, "dropped because", numbers=columns)
    for name, clips in datasets.items():
        total = len(clips.sizes)
        for bucket in clips.buckets:
            own = [one for one in clips.placements if one.bucket == bucket]
            cut = [_mean(one.frames_cut for one in own), _mean(one.pixels_cut for one in own)] if own else ["-", "-"]
            enlarged = sum(one.enlarged > 1 for one in own)
            table.add_row(name, str(bucket), str(len(own)), _share(len(own), total), *cut, str(enlarged))
        reasons = dict.fromkeys(reason.partition(":")[0] for reason in clips.dropped)
        why = "; ".join(f"{reason} ({sum(one.startswith(reason) for one in clips.dropped)})" for reason in reasons)
        table.add_row(name, "none", str(len(clips.dropped)), _share(len(clips.dropped), total), "", "", "", why)
    return table


def _mean(shares: Iterable[float]) -> str:
    return f"{statistics.fmean(shares):.0%}"


def _share(count: int, total: int) -> str:
    return f"{count / total:.0%}" if total else "-"
