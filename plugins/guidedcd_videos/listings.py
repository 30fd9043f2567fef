"""The entries that a dataset lists before any video is opened: key, caption, source and metadata of each clip."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from guidedcd.data.buckets import ClipSize
from guidedcd.data.clips import Clip, ClipError, clip_of
from guidedcd.data.geometry import Geometry
from guidedcd.data.lazy_sequence import LazySequence
from guidedcd.data.routing import Sample
from guidedcd_videos import VideosConfig
from guidedcd_videos.decoding import read_clip, read_size

SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".gif", ".ts")
CAPTION = ("caption", "text", "prompt")
SHORT = ("short_caption", "short_txt", "short_text")
MOTION = ("motion", "motion_score", "motion score")


@attrs.frozen(kw_only=True)
class Listed:
    """One entry of a dataset's list, with values as the list has them."""

    caption: Any
    source: Path | Callable[[], bytes]
    """The video file, or a function that reads its content."""
    short_caption: Any = None
    motion: Any = None
    tags: Mapping[str, Any] = attrs.field(factory=dict)


class Listing(LazySequence[Listed]):
    """The entries of a dataset; reading an unusable one raises ClipError."""

    def key(self, index: int) -> str:
        """Name of entry `index` within the dataset, the same on every machine, also of an unreadable entry."""
        raise NotImplementedError

    def keys(self) -> Iterable[str]:
        """All keys in order; overridden where one pass is faster."""
        return (self.key(index) for index in range(len(self)))


class Clips(LazySequence[Clip]):
    """A listing's clips, each decoded when it is read.

    Ids are the entries' keys; of entries with the same key, the second has the id KEY#2, the third KEY#3.
    """

    def __init__(self, name: str, config: VideosConfig, listing: Listing, geometry: Geometry) -> None:
        """Count repeated keys, and draw the order."""
        self.name, self.config, self.listing, self.geometry = name, config, listing, geometry
        self._repeats = repeats(listing.keys())
        self._order = None
        if config.shuffle is not None:
            random = np.random.Generator(np.random.Philox(key=config.shuffle))
            self._order = random.permutation(len(listing))

    def __len__(self) -> int:
        """How many clips are listed, usable or not."""
        return len(self.listing)

    def read(self, index: int) -> Clip:
        """Decode clip `index`.

        Raises:
            ClipError: It cannot be used; the message begins with its id.
        """
        with self._entry(index) as (sample, listed):
            begin = {"start": 0.0, "middle": 0.5}.get(self.config.begin)
            video = read_clip(
                _source(listed),
                self.geometry,
                fps=self.config.fps or self.geometry.fps,
                begin=_fraction(sample.id) if begin is None else begin,
                slow=self.config.short == "slow",
            )
            return clip_of(sample, video)

    def sample(self, index: int) -> Sample:
        """The metadata of clip `index`, whose video is not opened.

        Raises:
            ClipError: It cannot be used; the message begins with its id.
        """
        with self._entry(index) as (sample, _):
            return sample

    def size(self, index: int) -> ClipSize:
        """The size of clip `index`, as it is shown and at the teacher's frame rate.

        Raises:
            ClipError: As `read`.
        """
        with self._entry(index) as (_, listed):
            fps = self.config.fps or self.geometry.fps
            return read_size(_source(listed), fps=fps, slow=self.config.short == "slow")

    @contextmanager
    def _entry(self, index: int) -> Iterator[tuple[Sample, Listed]]:
        """The metadata and the entry of clip `index`; errors of the entry and of the body name the clip."""
        number = index if self._order is None else int(self._order[index])
        id_ = self.listing.key(number)
        if number in self._repeats:
            id_ += f"#{self._repeats[number] + 1}"
        try:
            listed = self.listing[number]
            caption = text_of(listed.caption)
            if not caption:
                raise ClipError("has no caption")
            sample = Sample(
                id=id_,
                dataset=self.name,
                caption=caption,
                short_caption=text_of(listed.short_caption) or None,
                tags=dict(listed.tags),
                motion=number_of(listed.motion),
            )
            yield sample, listed
        except ClipError as error:
            raise ClipError(f"{id_}: {error}") from error


def _source(listed: Listed) -> Path | bytes:
    """The video file, or its content."""
    return listed.source if isinstance(listed.source, Path) else listed.source()


def repeats(keys: Iterable[str]) -> dict[int, int]:
    """By index of a key that occurred before, how often it did; uses 8 bytes per key, for lists of millions."""
    digests = np.fromiter((_digest(key) for key in keys), dtype=np.uint64)
    order = np.argsort(digests, kind="stable")
    counts: dict[int, int] = {}
    for position in np.flatnonzero(digests[order][1:] == digests[order][:-1]):
        counts[int(order[position + 1])] = counts.get(int(order[position]), 0) + 1
    return counts


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def _fraction(id_: str) -> float:
    """A number in [0, 1) that depends on the clip's id only."""
    return _digest(id_) / 2**64


def text_of(value: Any) -> str:
    """Text without surrounding white space; empty for any other value."""
    return value.strip() if isinstance(value, str) else ""


def number_of(value: Any) -> float | None:
    """A finite number, possibly parsed from text; None for any other value."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def tag_of(value: Any) -> Any:
    """A value of a table as a JSON value: numeric text becomes a number."""
    if not isinstance(value, str):
        return value
    number = number_of(value)
    return value if number is None else int(number) if number.is_integer() and "." not in value else number


def first_of(row: Mapping[str, Any], names: Iterable[str]) -> Any:
    """The value of the first of `names` that `row` has."""
    return next((row[name] for name in names if name in row), None)


def entry_of(row: Mapping[str, Any], caption: Sequence[str], source: Any, ignored: Iterable[str] = ()) -> Listed:
    """The entry of a row of metadata: short caption and motion by their usual names, other values as tags.

    Args:
        row: A row of a table, or a JSON object.
        caption: Possible names of the caption, best first.
        source: The video.
        ignored: Names that do not become tags, such as that of the file name.
    """
    used = {*caption, *SHORT, *MOTION, *ignored}
    return Listed(
        caption=first_of(row, caption),
        source=source,
        short_caption=first_of(row, SHORT),
        motion=first_of(row, MOTION),
        tags={name: tag_of(value) for name, value in row.items() if name not in used and value not in ("", None)},
    )


def without_ending(name: str) -> str:
    """A video's name without its ending: "a/b.mp4" is "a/b"; other endings are part of the name."""
    stem, dot, ending = name.rpartition(".")
    return stem if dot + ending.lower() in SUFFIXES and not stem.endswith("/") and stem else name


def video_files(root: Path) -> list[str]:
    """Paths of all videos below `root`, relative, with "/", sorted."""
    files: list[str] = []
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        base = Path(folder).relative_to(root)
        files += [(base / n).as_posix() for n in names if n.lower().endswith(SUFFIXES) and not n.startswith(".")]
    return sorted(files)
