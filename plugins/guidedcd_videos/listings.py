"""What a dataset lists, before any video is opened: an id, a caption, a source and what else is known of each clip."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from guidedcd.data.clips import Clip, ClipError
from guidedcd.data.geometry import Geometry
from guidedcd_videos import VideosConfig
from guidedcd_videos.decoding import read_clip

SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".gif", ".ts")
CAPTION = ("caption", "text", "prompt")
SHORT = ("short_caption", "short_txt", "short_text")
MOTION = ("motion", "motion_score", "motion score")


@attrs.frozen(kw_only=True)
class Listed:
    """One clip as its dataset lists it."""

    caption: Any
    source: Path | Callable[[], bytes]
    """A file, or what reads its content."""
    short_caption: Any = None
    motion: Any = None
    tags: Mapping[str, Any] = attrs.field(factory=dict)


class Listing(Sequence[Listed]):
    """What a dataset lists; an entry that is unusable raises ClipError when it is asked for."""

    def key(self, place: int) -> str:
        """The name of entry `place` among the others of this dataset, whatever the machine; readable or not."""
        raise NotImplementedError

    def keys(self) -> Iterable[str]:
        """All keys in order; overridden where one pass is faster."""
        return (self.key(place) for place in range(len(self)))


class Clips(Sequence[Clip]):
    """A listing's clips, decoded when they are asked for.

    Ids are the entries' keys; where several entries have one, the later ones end in #2, #3 and so on.
    """

    def __init__(self, name: str, config: VideosConfig, listing: Listing, geometry: Geometry) -> None:
        """Fix ids and order."""
        self.name, self.config, self.listing, self.geometry = name, config, listing, geometry
        self._again = repeats(listing.keys())
        self._order = None
        if config.shuffle is not None:
            random = np.random.Generator(np.random.Philox(key=config.shuffle))
            self._order = random.permutation(len(listing))

    def __len__(self) -> int:
        """How many clips are listed, usable or not."""
        return len(self.listing)

    def __getitem__(self, index: int) -> Clip:
        """Read clip `index`.

        Raises:
            ClipError: It cannot be used; begins with its id.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = index if self._order is None else int(self._order[index])
        id_ = self.listing.key(place)
        if place in self._again:
            id_ += f"#{self._again[place] + 1}"
        try:
            return self._clip(id_, self.listing[place])
        except ClipError as error:
            raise ClipError(f"{id_}: {error}") from error

    def _clip(self, id_: str, listed: Listed) -> Clip:
        caption = text_of(listed.caption)
        if not caption:
            raise ClipError("has no caption")
        source = listed.source if isinstance(listed.source, Path) else listed.source()
        begin = {"start": 0.0, "middle": 0.5}.get(self.config.begin)
        return Clip(
            id=id_,
            dataset=self.name,
            caption=caption,
            short_caption=text_of(listed.short_caption) or None,
            tags=dict(listed.tags),
            motion=number_of(listed.motion),
            video=read_clip(
                source,
                self.geometry,
                fps=self.config.fps or self.geometry.fps,
                begin=_share(id_) if begin is None else begin,
                slow=self.config.short == "slow",
            ),
        )


def repeats(keys: Iterable[str]) -> dict[int, int]:
    """Places of keys that came before, and how often; 8 bytes per key, for lists of millions."""
    digests = np.fromiter((_digest(key) for key in keys), dtype=np.uint64)
    order = np.argsort(digests, kind="stable")
    found: dict[int, int] = {}
    for place in np.flatnonzero(digests[order][1:] == digests[order][:-1]):
        found[int(order[place + 1])] = found.get(int(order[place]), 0) + 1
    return found


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def _share(id_: str) -> float:
    """A number in [0, 1) that only the clip's id decides."""
    return _digest(id_) / 2**64


def text_of(value: Any) -> str:
    """A caption without the white space around it; anything but text is none."""
    return value.strip() if isinstance(value, str) else ""


def number_of(value: Any) -> float | None:
    """A finite number, also from text; None otherwise."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def tag_of(value: Any) -> Any:
    """A value of a table as JSON: text that is a number becomes one."""
    if not isinstance(value, str):
        return value
    number = number_of(value)
    return value if number is None else int(number) if number.is_integer() and "." not in value else number


def first_of(row: Mapping[str, Any], names: Iterable[str]) -> Any:
    """The value of the first of `names` that `row` has."""
    return next((row[name] for name in names if name in row), None)


def described(row: Mapping[str, Any], caption: Sequence[str], source: Any, silent: Iterable[str] = ()) -> Listed:
    """An entry from a row of metadata: short caption and motion under their usual names, the rest as tags.

    Args:
        row: Of a table, or a JSON object.
        caption: Names under which the caption may be.
        source: The video.
        silent: Names that say nothing of the clip, such as its file's.
    """
    known = {*caption, *SHORT, *MOTION, *silent}
    return Listed(
        caption=first_of(row, caption),
        source=source,
        short_caption=first_of(row, SHORT),
        motion=first_of(row, MOTION),
        tags={name: tag_of(value) for name, value in row.items() if name not in known and value not in ("", None)},
    )


def without_ending(name: str) -> str:
    """A video's name without its ending: "a/b.mp4" is "a/b"; other endings are part of the name."""
    stem, dot, ending = name.rpartition(".")
    return stem if dot + ending.lower() in SUFFIXES and not stem.endswith("/") and stem else name


def video_files(root: Path) -> list[str]:
    """Paths of all videos below `root`, relative, with "/", sorted."""
    found = []
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        base = Path(folder).relative_to(root)
        found += [(base / n).as_posix() for n in names if n.lower().endswith(SUFFIXES) and not n.startswith(".")]
    return sorted(found)
