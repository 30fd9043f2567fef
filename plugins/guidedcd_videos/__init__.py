"""Datasets of video files (a folder, WebVid, VidGen, OpenVid, tar shards), and a route for clips that hardly move."""

from __future__ import annotations

from pathlib import Path

import attrs
from attrs.validators import and_, ge, in_, le, optional

from guidedcd.plugins.configs import DatasetConfig, RouteConfig
from guidedcd.plugins.hookspecs import hookimpl


@attrs.frozen(kw_only=True)
class VideosConfig(DatasetConfig):
    """Options of every dataset of video files."""

    path: Path | None = attrs.field(default=None, metadata={"positional": True})
    """Folder of the data set, or the file that lists its clips, or one tar shard."""
    fps: float | None = attrs.field(default=None, validator=optional(and_(ge(0.01), le(1000))))
    """Frames per second at which videos are sampled by their timestamps; none: the frame rate of the teacher."""
    begin: str = attrs.field(default="middle", validator=in_(("middle", "start", "random")))
    """Which part of a longer video is used; `random` depends on the clip's id only, so that it never changes."""
    short: str = attrs.field(default="skip", validator=in_(("skip", "slow")))
    """`skip` a video that is shorter than the teacher's, or `slow` it down if it has enough frames."""
    shuffle: int | None = attrs.field(default=None, validator=optional(ge(0)))
    """Seed of a random order of the clips; none: the order of the list or of the file names."""


@attrs.frozen(kw_only=True)
class ListedConfig(VideosConfig):
    """Options of a dataset whose clips are listed in a file."""

    metadata: Path | None = None
    """File that lists the clips, relative to `path`; none: the file of the usual name there."""
    videos: Path | None = None
    """Folder of the videos, relative to `path`; none: the published layout, or anywhere below `path`."""


@attrs.frozen(kw_only=True)
class FolderConfig(ListedConfig):
    """Options of the dataset `folder`."""

    caption: str | None = None
    """Column of the metadata or key of the .json files with the caption; none: caption, text or prompt."""


@attrs.frozen(kw_only=True)
class WebVidConfig(ListedConfig):
    """Options of the dataset `webvid`."""


@attrs.frozen(kw_only=True)
class VidGenConfig(ListedConfig):
    """Options of the dataset `vidgen`."""


@attrs.frozen(kw_only=True)
class OpenVidConfig(ListedConfig):
    """Options of the dataset `openvid`."""


@attrs.frozen(kw_only=True)
class WebDatasetConfig(VideosConfig):
    """Options of the dataset `webdataset`."""

    caption: str | None = None
    """Key of the .json members with the caption; none: a .txt member, else the key caption, text or prompt."""


@attrs.frozen(kw_only=True)
class MovingConfig(RouteConfig):
    """Options of the route `moving`."""

    least: float = attrs.field(default=0.0, validator=ge(0))
    """Clips whose known motion is below this are not guided; in the dataset's own unit."""
    never: tuple[str, ...] = ()
    """Datasets whose clips are never guided; `webvid` in the paper."""
    tag: str = "use_motion_guide"
    """Name of a tag; clips whose tag is 0 or false are not guided."""


@hookimpl
def register_datasets(register):
    """Offer `folder`, `webvid`, `vidgen`, `openvid` and `webdataset`."""
    for name, target, config, summary in (
        ("folder", "Folder", FolderConfig, "video files with .txt or .json captions, or a metadata.csv or .jsonl"),
        ("webvid", "WebVid", WebVidConfig, "WebVid: a CSV and a tree of mp4 files"),
        ("vidgen", "VidGen", VidGenConfig, "VidGen-1M: a JSON list and mp4 files"),
        ("openvid", "OpenVid", OpenVidConfig, "OpenVid-1M: a CSV with motion scores, and mp4 files"),
        ("webdataset", "WebDataset", WebDatasetConfig, "tar shards of mp4 files with .json or .txt members"),
    ):
        register(name, f"guidedcd_videos.datasets:{target}", config=config, summary=summary)


@hookimpl
def register_routes(register):
    """Offer `moving`."""
    register(
        "moving",
        "guidedcd_videos.route:Moving",
        config=MovingConfig,
        summary="no energies for clips that hardly move or come from chosen datasets",
    )
