"""Damaged videos, captions and listings: the clip is skipped with its reason, or the data set refused in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import video_files
from faults import DEEP, NOBODY, Case, Change, both, cut, directory, flip, ids, judge, large, link, mode, pipe, text

pytestmark = pytest.mark.campaign

DATA = ("--config", "toy.toml", "--preprocess.videos", "10", "--rewards", "none", "--data", "folder:clips")
INSPECT = ("data", "inspect", *DATA, "--sample", "0")
TOML = {"needs": "toy.toml"}
SERVED = {"needs": "toy.toml", "status": 0}
FIRST = "clips/a/clip 00"


def clips(damage: Change = lambda folder: None, count: int = 10) -> Change:
    """A folder of small videos, after which `damage` changes one."""

    def change(folder: Path) -> None:
        video_files.folder(folder / "clips", [video_files.video()] * count)
        damage(folder)

    return change


def published(write: Callable[..., object], damage: Change = lambda folder: None) -> Change:
    """A data set in a published layout, after which `damage` changes it."""

    def change(folder: Path) -> None:
        write(folder / "set", [video_files.video()] * 6)
        damage(folder)

    return change


def wide(width: int, height: int = 2) -> bytes:
    """A video of another form."""
    return video_files.video([np.zeros((height, width, 3), np.uint8)] * 12)


VIDEOS = {
    "cut": cut(f"{FIRST}.mp4"),
    "empty": text(f"{FIRST}.mp4", ""),
    "text": text(f"{FIRST}.mp4", "I am a text. " * 50),
    "one frame": text(f"{FIRST}.mp4", video_files.video(1)),
    "sound alone": text(f"{FIRST}.mp4", video_files.sound_only()),
    "8192 wide": text(f"{FIRST}.mp4", wide(8192)),
    "a damaged header": flip(f"{FIRST}.mp4", 0.02),
    "a damaged middle": flip(f"{FIRST}.mp4"),
    "a playlist": text(f"{FIRST}.mp4", "#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"),
    "a list of files": text(f"{FIRST}.mp4", "ffconcat version 1.0\nfile /etc/passwd\n"),
    "an address": text(f"{FIRST}.mp4", "http://127.0.0.1:9/x.mp4\n"),
    "a pipe": pipe(f"{FIRST}.mp4"),
    "a folder": directory(f"{FIRST}.mp4"),
    "a device": link(f"{FIRST}.mp4", "/dev/zero"),
    "a broken link": link(f"{FIRST}.mp4", "nowhere"),
    "a link to itself": link(f"{FIRST}.mp4", f"{FIRST}.mp4"),
    "2 GB of zeros": large(f"{FIRST}.mp4", 2**31),
}
CAPTIONS = {
    "nested": (".json", DEEP),
    "a list": (".json", "[1]"),
    "a number": (".json", '{"caption": 1}'),
    "without a caption": (".json", "{}"),
    "cut": (".json", '{"caption": "a'),
    "binary": (".json", bytes(range(256))),
    "NaN": (".json", '{"caption": "a", "motion": NaN}'),
    "text for motion": (".json", '{"caption": "a", "motion": "fast"}'),
    "of 20,000 words": (".txt", "word " * 20_000),
    "of 20,000 letters": (".txt", "w" * 20_000),
    "no UTF-8": (".txt", b"red \xff\xfe circle"),
    "with escapes": (".txt", "a \x1b[31mred\x07 circle"),
    "of null bytes": (".txt", bytes(100)),
    "empty": (".txt", ""),
    "in Japanese": (".txt", "\u8d64\u3044\u5186" * 30),
}
LISTINGS = {
    "outside of the folder": "file_name,caption\na/clip 00.mp4,a\n../secret.mp4,x\n",
    "at the root": "file_name,caption\na/clip 00.mp4,a\n/etc/passwd,x\n",
    "an address": "file_name,caption\na/clip 00.mp4,a\nhttp://127.0.0.1:9/x.mp4,x\n",
    "without columns": "x,y\n1,2\n",
    "empty": "",
    "short rows": "file_name,caption\na/clip 00.mp4\n",
    "binary": bytes(range(256)),
    "a field of 200,000 letters": "file_name,caption\na/clip 00.mp4," + "x" * 200_000 + "\n",
    "an open quotation": 'file_name,caption\na/clip 00.mp4,"a\n',
}
CASES = [
    *[Case(f"video {name}", INSPECT, "10", clips(change), **SERVED) for name, change in VIDEOS.items()],
    *[
        Case(f"caption {name}", INSPECT, "", clips(text(FIRST + suffix, content)), **SERVED)
        for name, (suffix, content) in CAPTIONS.items()
    ],
    *[
        Case(
            f"listing {name}", INSPECT, "", clips(text("clips/metadata.csv", content)), needs="toy.toml", status=(0, 2)
        )
        for name, content in LISTINGS.items()
    ],
    Case("listing a pipe", INSPECT, "", clips(pipe("clips/metadata.csv")), needs="toy.toml", status=(0, 2)),
    Case(
        "listing a device", INSPECT, "", clips(link("clips/metadata.csv", "/dev/zero")), needs="toy.toml", status=(0, 2)
    ),
    Case("no folder", INSPECT, "clips", **TOML),
    Case("an empty folder", INSPECT, "clips", directory("clips"), **TOML),
    Case("a file for a folder", INSPECT, "clips", text("clips", "x"), **TOML),
    Case("a pipe for a folder", INSPECT, "clips", pipe("clips"), **TOML),
    Case("a folder nobody may read", INSPECT, "clips", clips(mode("clips", 0)), user=NOBODY, **TOML),
    Case("a folder that contains itself", INSPECT, "10", clips(link("clips/a/loop", "clips")), **SERVED),
    Case("fps 1e300", (*INSPECT, "--data.folder.fps", "1e300"), "fps", clips(), **TOML),
    Case("fps 0", (*INSPECT, "--data.folder.fps", "0"), "fps", clips(), **TOML),
    Case(
        "clip with a nested sidecar in a store",
        ("preprocess", *DATA, "--store", "new"),
        "store",
        clips(text("clips/a/clip 02.json", DEEP)),
        writes=("new*",),
        **SERVED,
    ),
    Case(
        "too many broken clips for a store",
        ("preprocess", *DATA, "--store", "new"),
        "max.skipped",
        clips(both(*(text(f"clips/a/clip 0{number}.mp4", "") for number in (0, 2, 4)))),
        writes=("new*",),
        **TOML,
    ),
    *[
        Case(
            f"{name} {what}",
            (*INSPECT[:-3], f"{name}:set", *INSPECT[-2:]),
            "",
            published(write, change),
            needs="toy.toml",
            status=(0, 2),
        )
        for name, write, listing in (
            ("webvid", video_files.webvid, "set/results_2M_train.csv"),
            ("vidgen", video_files.vidgen, "set/VidGen_1M_video_caption.json"),
            ("openvid", video_files.openvid, "set/OpenVid-1M.csv"),
            ("webdataset", video_files.shards, "set/train-00000.tar"),
        )
        for what, change in (
            ("sound", lambda folder: None),
            ("cut", cut(listing)),
            ("empty", text(listing, "")),
            ("binary", text(listing, bytes(range(256)) * 9)),
            ("nested", text(listing, DEEP)),
            ("a pipe", pipe(listing)),
            ("a device", link(listing, "/dev/zero")),
            ("a folder", directory(listing)),
        )
    ],
]


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_damaged_clips_are_skipped_and_damaged_listings_refused(case, toys, folder):
    """Damaged clips are skipped, damaged listings refused; nothing outside of the data set is read."""
    if case.user is not None and os.getuid():
        pytest.skip("only root can become another user")
    done = judge(case, toys, folder)

    assert "root:" not in done.out + done.err  # of /etc/passwd
