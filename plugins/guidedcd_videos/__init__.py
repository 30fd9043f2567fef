"""Videos on disk as datasets - a folder, WebVid, VidGen, OpenVid, tar shards - and a route for clips without motion."""

from __future__ import annotations

from pathlib import Path

import attrs
from attrs.validators import ge, in_, le, optional

from guidedcd.plugins.configs import DatasetConfig, RouteConfig
from guidedcd.plugins.hookspecs import hookimpl


@attrs.frozen(kw_only=True)
class VideosConfig(DatasetConfig):
    """Options of every dataset of video files."""

    path: Path | None = attrs.field(default=None, metadata={"positional": True})
    """The folder that holds the data set; the file that lists its clips, or one shard, is accepted too."""
    fps: float | None = attrs.field(default=None, validator=optional([ge(0.01), le(1000)]))
    """Frames per second at which videos are sampled, by their timestamps; none: those of the teacher."""
    begin: str = attrs.field(default="middle", validator=in_(("middle", "start", "random")))
    """Which part of a longer video is used; `random` draws it from the clip's id, so it is the same every time."""
    short: str = attrs.field(default="skip", validator=in_(("skip", "slow")))
    """A video shorter than the teacher's is skipped, or all of it is used, in slow motion, if it has enough frames."""
    shuffle: int | None = attrs.field(default=None, validator=optional(ge(0)))
    """Take the clips in an order drawn from this seed; none: in the order of the list, or of the files' names."""


@attrs.frozen(kw_only=True)
class ListedConfig(VideosConfig):
    """Options of a dataset whose clips are listed in a file."""

    metadata: Path | None = None
    """The file that lists the clips, relative to `path`; none: the one that lies there under its usual name."""
    videos: Path | None = None
    """The folder of the videos, relative to `path`; none: where they were published, or anywhere below `path`."""


@attrs.frozen(kw_only=True)
class FolderConfig(ListedConfig):
    """Options of the dataset `folder`."""

    caption: str | None = None
    """Column of the metadata, or key of the .json files, that is the caption; none: caption, text or prompt."""


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
    """Key of the .json members that is the caption; none: caption, text or prompt, and a .txt member before them."""


@attrs.frozen(kw_only=True)
class MovingConfig(RouteConfig):
    """Options of the route `moving`."""

    least: float = attrs.field(default=0.0, validator=ge(0))
    """Clips whose known motion is below this, in their dataset's own unit, are not guided."""
    never: tuple[str, ...] = ()
    """Datasets whose clips are never guided; the paper's is webvid."""
    tag: str = "use_motion_guide"
    """Clips whose metadata say 0 or false under this name are not guided."""


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
        summary="no energy guides clips that hardly move, or that come from datasets of still footage",
    )
