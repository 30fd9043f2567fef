"""The datasets of video files: the published name and layout of each list and its videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import attrs

from guidedcd.data.clips import Clip, ClipError
from guidedcd.data.geometry import Geometry
from guidedcd.errors import GuidedCDError
from guidedcd.files import digest
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
from guidedcd_videos.rows import CaptionFiles, Rows, Videos
from guidedcd_videos.shards import Shards, shard_files
from guidedcd_videos.tables import Table, read_table


class Dataset:
    """Base class: a folder that must exist, and the clips of its listing."""

    name: ClassVar[str]

    def __init__(self, config: VideosConfig) -> None:
        """Keep the config.

        Raises:
            GuidedCDError: It names no folder.
        """
        if config.path is None:
            raise GuidedCDError(f"dataset '{self.name}' needs its folder: --data {self.name}:FOLDER.")
        self.config, self.path = config, config.path

    def open(self, geometry: Geometry) -> Sequence[Clip]:
        """All listed clips in the teacher's size; a video is decoded when its clip is read.

        Raises:
            GuidedCDError: There is no such folder, its list cannot be used, or it is empty.
        """
        if not self.path.exists():
            raise GuidedCDError(f"dataset '{self.name}': there is no folder {self.path}.")
        return Clips(self.name, self.config, self.listing(self.path), geometry)

    def fingerprint(self) -> str:
        """A digest of names, sizes and times of modification of the files that list the clips.

        A video that changes without them is not noticed: a million files take minutes on a network disk.

        Raises:
            GuidedCDError: There is no such folder, or no list in it.
        """
        if not self.path.exists():
            raise GuidedCDError(f"dataset '{self.name}': there is no folder {self.path}.")
        return digest([_described(file, self.path) for file in self.listing_files(self.path)])

    def listing(self, path: Path) -> Listing:
        """The entries of the data set at `path`, a folder or a file."""
        raise NotImplementedError

    def listing_files(self, path: Path) -> Sequence[Path]:
        """The files that list the clips of the data set at `path`."""
        raise NotImplementedError


def _described(file: Path, root: Path) -> tuple[str, int, int]:
    """Name below the data set's folder, size, and time of modification in seconds, which every file system keeps."""
    status = file.stat() if file.exists() else file.lstat()  # of a link whose file is missing, the link itself
    name = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
    return name, status.st_size, int(status.st_mtime)


class ListedDataset(Dataset):
    """Base class of the datasets whose clips a table lists."""

    config: ListedConfig
    patterns: ClassVar[tuple[str, ...]]
    """Glob patterns of the list, best first."""
    folders: ClassVar[tuple[str, ...]] = ("", "videos", "video")
    """Folders in which the videos are looked up first."""
    search: ClassVar[bool] = True
    """Whether the videos may be in any other folder below the root."""
    naming: ClassVar[tuple[str, ...]]
    """Columns with the name of the video; the first one that a row has counts."""
    ignored: ClassVar[tuple[str, ...]] = ()
    """Columns that do not become tags."""
    caption: ClassVar[tuple[str, ...]] = CAPTION
    """Columns with the caption; the first one that a row has counts."""
    ending: ClassVar[str] = ""
    """Appended to a name that does not end like a video file."""

    def listing(self, path: Path) -> Listing:
        """The rows of the data set's table."""
        file = self.list_file(path)
        root = path.parent if path.is_file() else path  # a pipe is no file
        if self.config.videos is not None:
            root = root / self.config.videos
            if not root.is_dir():
                raise GuidedCDError(f"dataset '{self.name}': there is no folder {root} for its videos.")
        return self.rows(read_table(file), root, self.caption)

    def listing_files(self, path: Path) -> Sequence[Path]:
        """The table."""
        return [self.list_file(path)]

    def rows(self, table: Table, root: Path, caption: Sequence[str]) -> Rows:
        """The clips of a table.

        Raises:
            GuidedCDError: It lacks a column; the message lists the columns it has.
        """
        for names in (self.naming, caption):
            if not any(name in table.columns for name in names):
                columns = ", ".join(table.columns) or "none that can be read"
                missing = " or ".join(f"'{name}'" for name in names)
                raise GuidedCDError(
                    f"dataset '{self.name}': {table.path} has no column {missing}; its columns are {columns}."
                )
        return Rows(table, Videos(root, self.folders, self.search), caption, self)

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
            files = sorted(path.glob(pattern))
            if len(files) > 1:
                names = ", ".join(file.relative_to(path).as_posix() for file in files[:5])
                raise GuidedCDError(
                    f"dataset '{self.name}': {path} has several lists ({names}); "
                    f"choose one with --data.{self.name}.metadata FILE."
                )
            if files:
                return files[0]
        raise GuidedCDError(
            f"dataset '{self.name}': {path} has no list of clips ({' or '.join(self.patterns)}); "
            f"name it with --data.{self.name}.metadata FILE."
        )

    def name_of(self, row: Mapping[str, Any]) -> str:
        """The video's file name, relative to the folder of the videos.

        Raises:
            ClipError: The row names none.
        """
        name = str(first_of(row, self.naming) or "").strip()
        if not name:
            raise ClipError("names no video")
        return name if name.lower().endswith(SUFFIXES) else name + self.ending

    def completed(self, entry: Listed) -> Listed:
        """The entry with what holds for every clip of this data set."""
        return entry


class Folder(ListedDataset):
    """The dataset `folder`: a metadata.csv or .jsonl if there is one, else captions in files beside the videos."""

    name = "folder"
    patterns = ("metadata.csv", "metadata.jsonl", "metadata.tsv", "metadata.json")
    naming = ("file_name", "file", "video", "video_path", "file_path", "path")
    search = False
    config: FolderConfig

    def has_list(self, path: Path) -> bool:
        """Whether a table lists the clips of the folder or file at `path`."""
        return path.is_file() or bool(self.config.metadata) or any((path / name).is_file() for name in self.patterns)

    def listing_files(self, path: Path) -> Sequence[Path]:
        """The table; without one, the videos below the folder and the captions beside them."""
        if self.has_list(path):
            return super().listing_files(path)
        root = path if self.config.videos is None else path / self.config.videos
        videos = [root / name for name in video_files(root)]
        captions = {video.with_suffix(ending) for video in videos for ending in (".json", ".txt")}
        return [*videos, *sorted(file for file in captions if file.is_file())]

    def listing(self, path: Path) -> Listing:
        """The rows of the metadata, or the videos below the folder."""
        caption = (self.config.caption,) if self.config.caption else CAPTION
        root = path.parent if path.is_file() else path  # a pipe is no file
        if self.config.videos is not None:
            root = root / self.config.videos
        if not root.is_dir():
            raise GuidedCDError(f"dataset 'folder': there is no folder {root} for its videos.")
        if self.has_list(path):
            return self.rows(read_table(self.list_file(path)), root, caption)
        files = video_files(root)
        if not files:
            kinds = ", ".join(SUFFIXES)
            raise GuidedCDError(
                f"dataset 'folder': there is no video ({kinds}) and no metadata.csv or .jsonl in {root}."
            )
        return CaptionFiles(root, files, caption)


class WebVid(ListedDataset):
    """The dataset `webvid`: videos/PAGE_DIR/VIDEOID.mp4 and a CSV with videoid, page_dir and name, the caption.

    Its captions are short, so that rewards can read them in full.
    """

    name = "webvid"
    patterns = ("results*train*.csv", "*train*.csv", "*.csv")
    folders = ("videos", "", "train", "videos/train")
    search = False
    naming = ("videoid",)
    ignored = ("page_dir", "page_idx", "contentUrl")
    caption = ("name", "caption")

    def name_of(self, row: Mapping[str, Any]) -> str:
        """PAGE_DIR/VIDEOID.mp4; without page_dir the files lie in one folder."""
        video, page = (str(row.get(name) or "").strip() for name in ("videoid", "page_dir"))
        if not video:
            raise ClipError("names no video")
        return f"{page}/{video}.mp4" if page else f"{video}.mp4"

    def completed(self, entry: Listed) -> Listed:
        """The entry, whose caption is also its short caption."""
        return attrs.evolve(entry, short_caption=entry.short_caption or entry.caption)


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
    folders = ("video", "videos", "")
    naming = ("video",)


class WebDataset(Dataset):
    """The dataset `webdataset`: tar shards in which the members of one name form a sample."""

    name = "webdataset"
    config: WebDatasetConfig

    def listing_files(self, path: Path) -> Sequence[Path]:
        """The shards, which contain the videos."""
        return [file for _, file in shard_files(path)]

    def listing(self, path: Path) -> Listing:
        """The samples of all shards.

        Raises:
            GuidedCDError: There is no shard, or no shard has a sample.
        """
        caption = (self.config.caption,) if self.config.caption else CAPTION
        shards = Shards(shard_files(path), caption)
        if not len(shards):
            raise GuidedCDError(f"dataset 'webdataset': the .tar files in {path} contain no sample.")
        return shards
