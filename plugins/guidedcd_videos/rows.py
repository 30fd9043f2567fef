"""Listings of a folder: the rows of a table with their videos, or videos with captions in files beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

from guidedcd.data.clips import ClipError
from guidedcd_videos.listings import Listed, Listing, entry_of, video_files, without_ending
from guidedcd_videos.tables import Row, Table


class Layout(Protocol):
    """How a published data set names its videos."""

    naming: ClassVar[tuple[str, ...]]
    ignored: ClassVar[tuple[str, ...]]

    def name_of(self, row: Row) -> str:
        """The video's file name, relative to the folder of the videos."""

    def completed(self, entry: Listed) -> Listed:
        """The entry with what holds for every clip of this data set."""


class Videos:
    """The video files of a data set, looked up by the names in its list."""

    def __init__(self, root: Path, folders: Sequence[str], search: bool) -> None:
        """Look in `folders` below `root`, and with `search` in all others."""
        self.root, self.folders, self.search = root, folders, search

    def find(self, name: str) -> Path:
        """The file of this name.

        Raises:
            ClipError: There is none.
        """
        self._check_inside(name)
        for folder in self.folders:
            if (path := self.root / folder / name).is_file():
                return path
        if self.search and (path_below := self._below.get(Path(name).name)):
            return self.root / path_below
        raise ClipError("the file is missing")

    def _check_inside(self, name: str) -> None:
        """Refuse a name that leads out of the data set's folder: lists are downloaded from others."""
        root = os.path.abspath(self.root)
        for folder in self.folders or ("",):
            path = os.path.normpath(os.path.join(root, folder, name))
            if os.path.commonpath([root, path]) != root:
                raise ClipError("its file lies outside of the data set's folder")

    @cached_property
    def _below(self) -> dict[str, str]:
        """The first path in the tree by file name; listed once a file is not in the usual folders."""
        return {Path(path).name: path for path in reversed(video_files(self.root))}


class Rows(Listing):
    """The clips of a table."""

    def __init__(self, table: Table, videos: Videos, caption: Sequence[str], dataset: Layout) -> None:
        self.table, self.videos, self.caption, self.dataset = table, videos, caption, dataset

    def __len__(self) -> int:
        """How many rows."""
        return len(self.table)

    def key(self, index: int) -> str:
        """The video's name without its ending if the row has one, else the row's line number."""
        try:
            return self._key(index, self.table[index])
        except ClipError:
            return self._key(index, None)

    def keys(self) -> Iterator[str]:
        """All keys, in one pass over the table."""
        return (self._key(index, row) for index, row in enumerate(self.table.scan()))

    def _key(self, index: int, row: Row | None) -> str:
        try:
            path = Path(self.dataset.name_of(row or {}))
        except ClipError:
            return self.table.describe(index)
        if path.is_absolute():
            path = path.relative_to(self.videos.root) if path.is_relative_to(self.videos.root) else Path(path.name)
        return without_ending(path.as_posix())

    def read(self, index: int) -> Listed:
        """The entry of row `index`."""
        row = self.table[index]
        path = self.videos.find(self.dataset.name_of(row))
        ignored = (*self.dataset.naming, *self.dataset.ignored)
        return self.dataset.completed(entry_of(row, self.caption, path, ignored))


class CaptionFiles(Listing):
    """Videos in a folder, each with its caption in a file of the same name."""

    def __init__(self, root: Path, files: Sequence[str], caption: Sequence[str]) -> None:
        self.root, self.files, self.caption = root, files, caption

    def __len__(self) -> int:
        """How many videos."""
        return len(self.files)

    def key(self, index: int) -> str:
        """The file's path below the folder, without its ending."""
        return without_ending(self.files[index])

    def read(self, index: int) -> Listed:
        """The entry of video `index`: the values of its .json file, with the caption of its .txt file."""
        path = self.root / self.files[index]
        metadata: dict[str, Any] = {}
        try:
            if (caption_file := path.with_suffix(".json")).is_file():
                metadata = json.loads(caption_file.read_text(encoding="utf-8-sig"))
            if not isinstance(metadata, dict):
                raise ClipError(f"{caption_file.name} contains no object")
            if (caption_file := path.with_suffix(".txt")).is_file():
                metadata = {**metadata, self.caption[0]: caption_file.read_text(encoding="utf-8-sig")}
        except (ValueError, RecursionError) as error:  # what JSON and UTF-8 raise
            raise ClipError(f"{caption_file.name} is damaged ({error})") from None
        except OSError as error:
            raise ClipError(f"{caption_file.name} cannot be read ({error.strerror})") from None
        return entry_of(metadata, self.caption, path)
