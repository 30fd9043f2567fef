"""The datasets: where each finds its list and its videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import attrs

from guidedcd.data.clips import Clip, ClipError
from guidedcd.data.geometry import Geometry
from guidedcd.errors import GuidedCDError
from guidedcd_videos import FolderConfig, ListedConfig, VideosConfig, WebDatasetConfig
from guidedcd_videos.listings import (
    CAPTION,
    SUFFIXES,
    Clips,
    Listed,
    Listing,
    first_of,
    video_files,
)
from guidedcd_videos.rows import Beside, Rows, Videos
from guidedcd_videos.shards import Shards, shard_files
from guidedcd_videos.tables import Table, read_table


class Dataset:
    """What the datasets share: a path that must exist, and clips of a listing."""

    name: ClassVar[str]

    def __init__(self, config: VideosConfig) -> None:
        """Keep the config.

        Raises:
            GuidedCDError: It says no folder.
        """
        if config.path is None:
            raise GuidedCDError(f"dataset '{self.name}' needs its folder: --data {self.name}:FOLDER.")
        self.config = config

    def open(self, geometry: Geometry) -> Sequence[Clip]:
        """All clips that are listed, in the teacher's size; videos are decoded when they are asked for.

        Raises:
            GuidedCDError: There is no such folder, its list cannot be used, or it is empty.
        """
        path = self.config.path
        if not path.exists():
            raise GuidedCDError(f"dataset '{self.name}': there is no folder {path}.")
        return Clips(self.name, self.config, self.listing(path), geometry)

    def listing(self, path: Path) -> Listing:
        """What lies at `path`."""
        raise NotImplementedError


class ListedDataset(Dataset):
    """A dataset whose clips a table lists."""

    config: ListedConfig
    patterns: ClassVar[tuple[str, ...]]
    """Where the list may be, best first."""
    usual: ClassVar[tuple[str, ...]] = ("", "videos", "video")
    """Where the videos may be."""
    search: ClassVar[bool] = True
    """Whether they may be anywhere else."""
    naming: ClassVar[tuple[str, ...]]
    """Columns that name the video; the first that a table has."""
    silent: ClassVar[tuple[str, ...]] = ()
    """Columns that say nothing of the clip."""
    caption: ClassVar[tuple[str, ...]] = CAPTION
    ending: ClassVar[str] = ""
    """What a name lacks to be a file's."""

    def listing(self, path: Path) -> Listing:
        """The rows of the data set's table."""
        file = self.list_file(path)
        root = path if path.is_dir() else path.parent
        if self.config.videos is not None:
            root = root / self.config.videos
            if not root.is_dir():
                raise GuidedCDError(f"dataset '{self.name}': there is no folder {root} for its videos.")
        return self.rows(read_table(file), root, self.caption)

    def rows(self, table: Table, root: Path, caption: Sequence[str]) -> Rows:
        """The clips of a table.

        Raises:
            GuidedCDError: It lacks a column; names those it has.
        """
        for names in (self.naming, caption):
            if not any(name in table.columns for name in names):
                has = ", ".join(table.columns) or "none that can be read"
                lacks = " or ".join(f"'{name}'" for name in names)
                raise GuidedCDError(
                    f"dataset '{self.name}': {table.path} has no column {lacks}; its columns are {has}."
                )
        return Rows(table, Videos(root, self.usual, self.search), caption, self)

    def list_file(self, path: Path) -> Path:
        """The file that lists the clips.

        Raises:
            GuidedCDError: There is none, or several.
        """
        if path.is_file():
            return path
        if self.config.metadata is not None:
            if not (path / self.config.metadata).is_file():
                raise GuidedCDError(f"dataset '{self.name}': there is no file {path / self.config.metadata}.")
            return path / self.config.metadata
        for pattern in self.patterns:
            found = sorted(path.glob(pattern))
            if len(found) > 1:
                names = ", ".join(file.relative_to(path).as_posix() for file in found[:5])
                raise GuidedCDError(
                    f"dataset '{self.name}': {path} has several lists ({names}); "
                    f"choose one with --data.{self.name}.metadata FILE."
                )
            if found:
                return found[0]
        raise GuidedCDError(
            f"dataset '{self.name}': {path} has no list of clips ({' or '.join(self.patterns)}); "
            f"name it with --data.{self.name}.metadata FILE."
        )

    def name_of(self, row: Mapping[str, Any]) -> str:
        """The video's file name, relative to the folder of the videos.

        Raises:
            ClipError: The row does not say.
        """
        name = str(first_of(row, self.naming) or "").strip()
        if not name:
            raise ClipError("names no video")
        return name if name.lower().endswith(SUFFIXES) else name + self.ending

    def listed(self, found: Listed) -> Listed:
        """An entry, with what is known of every clip of this data set."""
        return found


class Folder(ListedDataset):
    """The dataset `folder`: a metadata.csv or .jsonl where there is one, else captions beside the videos."""

    name = "folder"
    patterns = ("metadata.csv", "metadata.jsonl", "metadata.tsv", "metadata.json")
    naming = ("file_name", "file", "video", "video_path", "file_path", "path")
    search = False
    config: FolderConfig

    def listing(self, path: Path) -> Listing:
        """The rows of the metadata, or the videos below the folder."""
        caption = (self.config.caption,) if self.config.caption else CAPTION
        listed = path.is_file() or self.config.metadata or any((path / name).is_file() for name in self.patterns)
        root = path if path.is_dir() else path.parent
        if self.config.videos is not None:
            root = root / self.config.videos
        if not root.is_dir():
            raise GuidedCDError(f"dataset 'folder': there is no folder {root} for its videos.")
        if listed:
            return self.rows(read_table(self.list_file(path)), root, caption)
        files = video_files(root)
        if not files:
            kinds = ", ".join(SUFFIXES)
            raise GuidedCDError(
                f"dataset 'folder': there is no video ({kinds}) and no metadata.csv or .jsonl in {root}."
            )
        return Beside(root, files, caption)


class WebVid(ListedDataset):
    """The dataset `webvid`: videos/PAGE_DIR/VIDEOID.mp4 and a CSV with videoid, page_dir and name, the caption.

    Its captions are short: they are also what rewards read.
    """

    name = "webvid"
    patterns = ("results*train*.csv", "*train*.csv", "*.csv")
    usual = ("videos", "", "train", "videos/train")
    search = False
    naming = ("videoid",)
    silent = ("page_dir", "page_idx", "contentUrl")
    caption = ("name", "caption")

    def name_of(self, row: Mapping[str, Any]) -> str:
        """PAGE_DIR/VIDEOID.mp4; without page_dir the files lie in one folder."""
        video, page = (str(row.get(name) or "").strip() for name in ("videoid", "page_dir"))
        if not video:
            raise ClipError("names no video")
        return f"{page}/{video}.mp4" if page else f"{video}.mp4"

    def listed(self, found: Listed) -> Listed:
        """Its caption is also its short one."""
        return attrs.evolve(found, short_caption=found.short_caption or found.caption)


class VidGen(ListedDataset):
    """The dataset `vidgen`: a JSON list of {vid, caption}, and VID.mp4 wherever its archives were unpacked."""

    name = "vidgen"
    patterns = ("VidGen_1M_video_caption.json", "*/VidGen_1M_video_caption.json", "*.json")
    naming = ("vid",)
    ending = ".mp4"


class OpenVid(ListedDataset):
    """The dataset `openvid`: a CSV with video, caption, motion score and more, and its files in one folder."""

    name = "openvid"
    patterns = ("OpenVid-1M.csv", "data/train/OpenVid-1M.csv", "*.csv", "data/train/*.csv")
    usual = ("video", "videos", "")
    naming = ("video",)


class WebDataset(Dataset):
    """The dataset `webdataset`: tar shards whose members of one name are one sample."""

    name = "webdataset"
    config: WebDatasetConfig

    def listing(self, path: Path) -> Listing:
        """The samples of all shards.

        Raises:
            GuidedCDError: There is no shard, or none has a sample.
        """
        caption = (self.config.caption,) if self.config.caption else CAPTION
        found = Shards(shard_files(path), caption)
        if not len(found):
            raise GuidedCDError(f"dataset 'webdataset': the .tar files in {path} hold no sample.")
        return found
