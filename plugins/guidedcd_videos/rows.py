"""Listings of what lies in a folder: the rows of a table with their videos, or videos with captions beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from guidedcd.data.clips import ClipError
from guidedcd_videos.listings import Listed, Listing, described, video_files, without_ending
from guidedcd_videos.tables import Row, Table


class Layout(Protocol):
    """How a published data set names its videos."""

    naming: tuple[str, ...]
    silent: tuple[str, ...]

    def name_of(self, row: Row) -> str:
        """The video's file name, relative to the folder of the videos."""

    def listed(self, found: Listed) -> Listed:
        """An entry, with what is known of every clip of this data set."""


class Videos:
    """The files of a data set, found by the names that its list has for them."""

    def __init__(self, root: Path, usual: Sequence[str], search: bool) -> None:
        """Look in the folders `usual` below `root`, and with `search` in all others."""
        self.root, self.usual, self.search = root, usual, search

    def find(self, name: str) -> Path:
        """The file of this name.

        Raises:
            ClipError: There is none.
        """
        self._check_inside(name)
        for folder in self.usual:
            if (path := self.root / folder / name).is_file():
                return path
        if self.search and (found := self._below.get(Path(name).name)):
            return self.root / found
        raise ClipError("the file is missing")

    def _check_inside(self, name: str) -> None:
        """Refuse a name that leads out of the data set's folder: lists are downloaded from others."""
        root = os.path.abspath(self.root)
        for folder in self.usual or ("",):
            path = os.path.normpath(os.path.join(root, folder, name))
            if os.path.commonpath([root, path]) != root:
                raise ClipError("its file lies outside of the data set's folder")

    @cached_property
    def _below(self) -> dict[str, str]:
        """By file name, the first place in the tree; made when a file is not where it is usually."""
        return {Path(found).name: found for found in reversed(video_files(self.root))}


class Rows(Listing):
    """The clips of a table."""

    def __init__(self, table: Table, videos: Videos, caption: Sequence[str], dataset: Layout) -> None:
        self.table, self.videos, self.caption, self.dataset = table, videos, caption, dataset

    def __len__(self) -> int:
        """How many rows."""
        return len(self.table)

    def key(self, place: int) -> str:
        """The video's name without its ending where the row has one, else the row's place."""
        try:
            return self._key(place, self.table[place])
        except ClipError:
            return self._key(place, None)

    def keys(self) -> Iterator[str]:
        """All keys, in one pass over the table."""
        return (self._key(place, row) for place, row in enumerate(self.table.scan()))

    def _key(self, place: int, row: Row | None) -> str:
        try:
            path = Path(self.dataset.name_of(row or {}))
        except ClipError:
            return self.table.where(place)
        if path.is_absolute():
            path = path.relative_to(self.videos.root) if path.is_relative_to(self.videos.root) else Path(path.name)
        return without_ending(path.as_posix())

    def __getitem__(self, place: int) -> Listed:
        """Row `place`."""
        row = self.table[place]
        found = self.videos.find(self.dataset.name_of(row))
        return self.dataset.listed(described(row, self.caption, found, (*self.dataset.naming, *self.dataset.silent)))


class Beside(Listing):
    """Videos in a folder, each with its caption in a file of the same name."""

    def __init__(self, root: Path, files: Sequence[str], caption: Sequence[str]) -> None:
        self.root, self.files, self.caption = root, files, caption

    def __len__(self) -> int:
        """How many videos."""
        return len(self.files)

    def key(self, place: int) -> str:
        """The file's path below the folder, without its ending."""
        return without_ending(self.files[place])

    def __getitem__(self, place: int) -> Listed:
        """Video `place`: what its .json says, and the caption of its .txt, which goes first."""
        path = self.root / self.files[place]
        about: dict[str, Any] = {}
        try:
            if (beside := path.with_suffix(".json")).is_file():
                about = json.loads(beside.read_text(encoding="utf-8-sig"))
            if not isinstance(about, dict):
                raise ClipError(f"{beside.name} holds no object")
            if (beside := path.with_suffix(".txt")).is_file():
                about = {**about, self.caption[0]: beside.read_text(encoding="utf-8-sig")}
        except (ValueError, RecursionError) as error:  # what JSON and UTF-8 raise
            raise ClipError(f"{beside.name} is damaged ({error})") from None
        except OSError as error:
            raise ClipError(f"{beside.name} cannot be read ({error.strerror})") from None
        return described(about, self.caption, path)
