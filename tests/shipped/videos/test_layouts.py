"""What the datasets make of a folder: published layouts, metadata, ids, order, and mistakes in one sentence."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tarfile

import attrs
import pytest
import torch
import video_files
from guidedcd_videos import FolderConfig, MovingConfig
from guidedcd_videos.route import Moving
from guidedcd_videos.tables import CsvTable, JsonLines, read_table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guidedcd.cli import main
from guidedcd.data.clips import ClipError
from guidedcd.data.geometry import Geometry
from guidedcd.data.routing import Route, Sample
from guidedcd.errors import GuidedCDError
from guidedcd.plugins.registry import load_plugins
from guidedcd.testing import checks

GEOMETRY = Geometry(frames=4, height=16, width=16, fps=8)
LAYOUTS = {
    "folder": video_files.folder,
    "webvid": video_files.webvid,
    "vidgen": video_files.vidgen,
    "openvid": video_files.openvid,
    "webdataset": video_files.shards,
}


def opened(name: str, path, **options):
    """The clips of a dataset, as the engine opens them."""
    component = load_plugins().get("dataset", name)
    return component.build(component.config(path=path, **options)).open(GEOMETRY)


def reasons(clips) -> dict[int, str]:
    """By place, why a clip cannot be used."""
    errors = {}
    for index in range(len(clips)):
        try:
            clips[index]
        except ClipError as error:
            errors[index] = str(error)
    return errors


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """By dataset, a folder of three clips in its layout."""
    base = tmp_path_factory.mktemp("sets")
    return {name: make(base / name, [video_files.video(12)] * 3) for name, make in LAYOUTS.items()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_conformance(name, roots):
    """Every dataset passes the checks that plugin authors run."""
    component = load_plugins().get("dataset", name)
    for check in checks("dataset", name, config=component.config(path=roots[name])):
        check()


@pytest.mark.parametrize(
    ("name", "ids", "caption", "short", "motion", "tags"),
    [
        ("folder", ["a/clip 00", "a/clip 02", "b/clip 01"], "A clip 0", "clip", 1.5, {"place": "here"}),
        (
            "webvid",
            [f"000000_000050/{n}" for n in (1000, 1001, 1002)],
            'A "red" ball, 0',
            'A "red" ball, 0',
            None,
            {"duration": "PT00H00M02S"},
        ),
        (
            "vidgen",
            [f"--vid{n}-Scene-000{n}" for n in range(3)],
            "The video shows ball 0. " + "It rolls on and on. " * 11 + "It rolls on and on.",
            None,
            None,
            {},
        ),
        (
            "openvid",
            [f"celeb_{n}_0to12" for n in range(3)],
            "A ball 0 rolls.",
            None,
            0.0,
            {
                "aesthetic score": 5.1,
                "temporal consistency score": 0.99,
                "camera motion": "static",
                "frame": 12,
                "fps": 8.0,
                "seconds": 1.5,
            },
        ),
        ("webdataset", [f"train-00000/00000000{n}" for n in range(3)], "Tar clip 0.", None, 2.0, {}),
    ],
)
def test_a_published_layout_is_understood(roots, tmp_path, name, ids, caption, short, motion, tags):
    """Ids, captions, motion and tags come from the fields of the data set, wherever its folder is."""
    clips = opened(name, roots[name])
    first = clips[0]
    moved = shutil.copytree(roots[name], tmp_path / "elsewhere" / "set")
    again = opened(name, moved)

    assert [clip.id for clip in clips] == ids == [clip.id for clip in again]
    assert (first.dataset, first.caption, first.short_caption, first.motion) == (name, caption, short, motion)
    assert dict(first.tags) == tags
    assert all(torch.equal(one.video, other.video) for one, other in zip(clips, again, strict=True))


def test_the_part_drawn_from_the_id_is_the_same_everywhere(tmp_path):
    """`random` takes another part of each video, the same one in whatever order the clips are read."""
    files = [video_files.video(30)] * 6
    clips = opened("webvid", video_files.webvid(tmp_path / "a", files), begin="random")
    alone = opened("webvid", video_files.webvid(tmp_path / "b", files), begin="random", shuffle=1)

    starts = {clip.id: float(clip.video[0].mean()) for clip in clips}
    assert len({round(value, 2) for value in starts.values()}) > 2
    assert {clip.id: float(clip.video[0].mean()) for clip in alone} == starts


def test_shuffling_is_a_permutation_that_the_seed_decides(tmp_path):
    """Another seed is another order of the same clips; the same seed the same order."""
    root = video_files.webvid(tmp_path, [video_files.video(12)] * 8)
    orders = [[clip.id for clip in opened("webvid", root, shuffle=seed)] for seed in (None, 0, 0, 1)]

    assert orders[1] == orders[2] != orders[3]
    assert sorted(orders[1]) == sorted(orders[3]) == orders[0]


def test_options_name_other_columns_and_folders(tmp_path):
    """A folder's own metadata: any of the usual column names, one that is named, videos elsewhere, a motion, tags."""
    video_files.write(tmp_path / "films" / "x.mp4", video_files.video())
    (tmp_path / "metadata.jsonl").write_text(
        json.dumps({"file": "x.mp4", "text": "a ball", "long": "a red ball that rolls", "motion": 3, "scene": [1, 2]})
    )
    (clip,) = opened("folder", tmp_path, videos="films")
    (longer,) = opened("folder", tmp_path, videos="films", caption="long", metadata="metadata.jsonl")

    assert (clip.id, clip.caption, clip.motion) == ("x", "a ball", 3.0)
    assert dict(clip.tags) == {"long": "a red ball that rolls", "scene": [1, 2]}
    assert longer.caption == "a red ball that rolls"


def test_a_video_that_is_listed_twice_has_two_ids(tmp_path):
    """Two captions of one file are two clips, whose ids differ, with noise of their own."""
    video_files.write(tmp_path / "x.mp4", video_files.video())
    (tmp_path / "metadata.csv").write_text("file_name,caption\nx.mp4,one\nx.mp4,two\nx.mp4,three\n")

    assert [(clip.id, clip.caption) for clip in opened("folder", tmp_path)] == [
        ("x", "one"),
        ("x#2", "two"),
        ("x#3", "three"),
    ]


def test_rows_that_cannot_be_read_are_counted_one_by_one(tmp_path):
    """Bytes that are no text, missing values, open quotes: each such row is a loss with its line, the others stay."""
    video_files.write(tmp_path / "x.mp4", video_files.video())
    (tmp_path / "metadata.csv").write_bytes(
        b'\xef\xbb\xbffile_name,caption\nx.mp4,"two\nlines"\nx.mp4,caf\xe9\nx.mp4\n\nx.mp4,"a" b\n,no file\nx.mp4, \n'
        b'x.mp4,good\nx.mp4,"open\nx.mp4,swallowed\n'
    )
    clips = opened("folder", tmp_path)
    lost = reasons(clips)

    assert len(clips) == 8
    assert clips[0].caption == "two\nlines" and clips[6].caption == "good"
    assert lost == {
        1: "metadata.csv line 4: is not UTF-8 text",
        2: "metadata.csv line 5: has 1 values for 2 columns",
        3: "metadata.csv line 7: malformed (',' expected after '\"')",
        4: "metadata.csv line 8: names no video",
        5: "x#2: has no caption",
        7: "metadata.csv line 11: malformed up to line 12 (unexpected end of data)",
    }


@pytest.mark.parametrize(
    ("name", "listing"),
    [
        ("webvid", "results_2M_train.csv"),
        ("vidgen", "VidGen_1M_video_caption.json"),
        ("webdataset", "train-00000.tar"),
    ],
)
def test_a_pipe_in_the_place_of_a_list_is_an_error(tmp_path, name, listing):
    """A named pipe, which would wait for a writer, is refused with its path."""
    os.mkfifo(tmp_path / listing)

    with pytest.raises(GuidedCDError, match=f"{listing} is a device or pipe"):
        opened(name, tmp_path)


def test_json_that_cannot_be_read_is_counted_too(tmp_path):
    """Lines and entries that are no objects, and captions that are no text."""
    video_files.write(tmp_path / "x.mp4", video_files.video())
    rows = [
        '{"file": "x.mp4", "caption": "a"}',
        "{no",
        "[1]",
        '{"file": "x.mp4", "caption": 7}',
        "",
        '{"caption": "b"}',
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    lost = reasons(opened("folder", tmp_path))
    vidgen = video_files.vidgen(
        tmp_path / "v", [video_files.video()], ["text", {"vid": "none", "caption": "c"}, {"vid": "x"}]
    )

    assert [lost[index].split("(")[0].strip() for index in (1, 2, 3, 4)] == [
        "metadata.jsonl line 2: is no JSON",
        "metadata.jsonl line 3: is a list, not an object",
        "x#2: has no caption",
        "metadata.jsonl line 6: names no video",
    ]
    assert reasons(opened("vidgen", vidgen)) == {
        1: "VidGen_1M_video_caption.json entry 2: is a text, not an object",
        2: "none: the file is missing",
        3: "x: the file is missing",
    }


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=8))
def test_rows_are_the_same_in_any_order(tmp_path, rows):
    """Reading a single row gives the same as reading the whole file with csv, with any quotes and line ends."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("one", "two"), *rows])
    path = tmp_path / "t.csv"
    path.write_bytes(text.getvalue().encode())
    table = CsvTable(path)

    expected = [dict(zip(("one", "two"), row, strict=True)) for row in rows]
    assert [table[index] for index in reversed(range(len(table)))] == expected[::-1]
    assert list(table.scan()) == expected


def test_captions_beside_videos_are_read(tmp_path):
    """A .txt is the caption, a .json may have one and more; without any, or with a damaged one, the clip is lost."""
    for name in "abcde":
        video_files.write(tmp_path / f"{name}.mp4", video_files.video())
    (tmp_path / "a.txt").write_text("from text\n")
    (tmp_path / "a.json").write_text('{"caption": "from json", "motion": 2}')
    (tmp_path / "b.json").write_text('{"text": "only json"}')
    (tmp_path / "c.json").write_text('{"caption"')
    (tmp_path / "d.txt").write_bytes(b"caf\xe9")
    clips = opened("folder", tmp_path)

    assert [(clips[i].caption, clips[i].motion) for i in (0, 1)] == [("from text", 2.0), ("only json", None)]
    lost = reasons(clips)
    assert lost[4] == "e: has no caption"
    assert lost[2].startswith("c: c.json is damaged") and lost[3].startswith("d: d.txt is damaged")


def test_shards_are_read_in_any_order(tmp_path):
    """The bytes found through the index are the members' own, from any shard, in any order, and from one file alone."""
    files = [video_files.video([video_files.picture(i % 20)] * 4) for i in range(10)]
    root = video_files.shards(tmp_path, files, size=4)
    clips = opened("webdataset", root)

    grey = [round((float(clips[i].video.mean()) * 255 - 4) / 8) for i in reversed(range(10))]
    assert grey == list(reversed(range(10)))
    assert len(opened("webdataset", root / "train-00001.tar")) == 4


def test_a_truncated_shard_lists_its_lost_samples_once(tmp_path):
    """Of a shard that ends early the samples before the cut are used, and the loss of the rest is one listed entry."""
    root = video_files.shards(tmp_path, [video_files.video()] * 4, size=4)
    path = root / "train-00000.tar"
    with tarfile.open(path) as archive:
        third = archive.getmember("000000002.mp4")
    whole = path.read_bytes()
    for end in (third.offset_data + 100, third.offset_data, third.offset + 100):
        path.write_bytes(whole[:end])
        clips = opened("webdataset", root)
        assert [clip.id for clip in (clips[0], clips[1])] == ["train-00000/000000000", "train-00000/000000001"]
        (lost,) = reasons(clips).values()
        assert lost.startswith("train-00000: the shard is damaged after 4 members") and "lost" in lost


def test_members_are_grouped_as_webdataset_does(tmp_path):
    """The key ends at the first dot of the name; other members, folders and samples without video are distinguished."""
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        video_files.add(archive, "./a/1.mp4", video_files.video())
        video_files.add(archive, "a/1.caption.json", b"{}")
        video_files.add(archive, "a/1.json", b'{"text": "one", "motion_score": 2}')
        video_files.add(archive, "b/1.txt", b"no video here")
        video_files.add(archive, "2.MP4", video_files.video())
        video_files.add(archive, "2.txt", b"two")
    clips = opened("webdataset", tmp_path)

    assert [(clips[i].id, clips[i].caption) for i in (0, 2)] == [("x/a/1", "one"), ("x/2", "two")]
    assert clips[0].motion == 2.0
    assert reasons(clips) == {1: "x/b/1: has no video, only .txt"}


def test_a_long_list_keeps_16_bytes_per_row(tmp_path):
    """Of a long CSV or .jsonl file only 16 bytes per row stay in memory."""
    (tmp_path / "m.csv").write_text("file,caption\n" + "x.mp4,words\n" * 1000)
    (tmp_path / "m.jsonl").write_text('{"file": "x.mp4"}\n' * 1000)
    for table in (read_table(tmp_path / "m.csv"), read_table(tmp_path / "m.jsonl")):
        assert isinstance(table, CsvTable | JsonLines) and len(table) == 1000
        held = [value for value in vars(table).values() if hasattr(value, "__len__") and len(value) > 99]
        assert sum(value.itemsize * len(value) for value in held) == 16 * 1000


@pytest.mark.parametrize(
    ("make", "data", "message"),
    [
        (lambda p: None, "webvid:nowhere", "dataset 'webvid': there is no folder nowhere."),
        (lambda p: None, "folder", "dataset 'folder' needs its folder: --data folder:FOLDER."),
        (lambda p: (p / "d").mkdir(), "folder:d", "dataset 'folder': there is no video"),
        (lambda p: (p / "d").mkdir(), "openvid:d", "dataset 'openvid': d has no list of clips (OpenVid-1M.csv or"),
        (lambda p: (p / "d").mkdir(), "webdataset:d", "dataset 'webdataset': there is no .tar file in d."),
        (
            lambda p: video_files.write(p / "d/r.csv", b"video_id,name,page\n1,a,b\n"),
            "webvid:d",
            "dataset 'webvid': d/r.csv has no column 'videoid'; its columns are video_id, name, page.",
        ),
        (
            lambda p: video_files.write(p / "d/metadata.csv", b"file_name,words\na.mp4,b\n"),
            "folder:d",
            "has no column 'caption' or 'text' or 'prompt'; its columns are file_name, words.",
        ),
        (lambda p: video_files.write(p / "d/r.csv", b"videoid,name\n"), "webvid:d", "d/r.csv lists no clip."),
        (lambda p: video_files.write(p / "d/r.csv", b""), "webvid:d", "d/r.csv lists no clip."),
        (lambda p: video_files.write(p / "d/c.json", b"[]"), "vidgen:d", "d/c.json lists no clip."),
        (
            lambda p: video_files.write(p / "d/c.json", b"[{"),
            "vidgen:d",
            "d/c.json is damaged and cannot be read as JSON",
        ),
        (
            lambda p: video_files.write(p / "d/c.json", b"{}"),
            "vidgen:d",
            "must contain a list with one object per video",
        ),
        (
            lambda p: video_files.write(p / "d/c.json", b"[1]"),
            "vidgen:d",
            "no column 'vid'; its columns are none that can be",
        ),
        (
            lambda p: [video_files.write(p / f"d/{n}.csv", b"videoid,name\n1,a\n") for n in "ab"],
            "webvid:d",
            "d has several lists (a.csv, b.csv); choose one with --data.webvid.metadata FILE.",
        ),
        (
            lambda p: video_files.write(p / "d/x.tar.gz", b"x"),
            "webdataset:d",
            "x.tar.gz is compressed: unpack it to .tar",
        ),
        (lambda p: tarfile.open(p / "x.tar", "w").close(), "webdataset:x.tar", "contain no sample."),
        (
            lambda p: video_files.write(p / "list.parquet", b"x"),
            "openvid:list.parquet",
            "such a file ends in .csv, .tsv",
        ),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, monkeypatch, capsys, make, data, message):
    """Missing folders, lists without a needed column, empty sets: the error names the cause, with exit code 2."""
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(["data", "inspect", "--teacher", "videocrafter2", "--data", data])
    captured = capsys.readouterr()

    assert exit_.value.code == 2
    assert message in captured.err and captured.err.count("\n") == 1
    assert not list(tmp_path.glob("*.png"))


def test_the_route_moving_switches_guidance_off():
    """Clips known to move too little, of named datasets, or flagged by their metadata are not guided; others are."""
    rule = Moving(MovingConfig(least=1.0, never=("webvid",)))

    def guided(**known) -> bool:
        sample = Sample(**{"id": "1", "dataset": "openvid", "caption": "a"} | known)
        before = Route(caption="a", rewards=frozenset({"hps"}))
        after = rule(sample, before)
        assert attrs.evolve(after, guided=True) == before
        return after.guided

    assert guided() and guided(motion=1.0) and guided(tags={"use_motion_guide": 1})
    assert not guided(motion=0.9) and not guided(dataset="webvid")
    assert not guided(tags={"use_motion_guide": 0}) and not guided(tags={"use_motion_guide": "False"})


def test_conformance_of_the_route():
    """The route passes the checks that plugin authors run."""
    for check in checks("route", "moving"):
        check()


def test_a_dataset_without_a_folder_cannot_be_made():
    """The mistake shows before anything is loaded."""
    with pytest.raises(GuidedCDError, match='`data="folder:FOLDER"'):
        load_plugins().get("dataset", "folder").build(FolderConfig())


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_fingerprint_follows_the_files_that_list_the_clips(name, roots, tmp_path):
    """It is the same in a copy with the same times, and changes with the list, or with a file where there is none."""
    component = load_plugins().get("dataset", name)
    root = shutil.copytree(roots[name], tmp_path / "copy")

    def fingerprint(path) -> str:
        return component.build(component.config(path=path)).fingerprint()

    assert fingerprint(root) == fingerprint(roots[name])
    (file, *_) = component.build(component.config(path=root)).listing_files(root)
    file.write_bytes(file.read_bytes() + b"\n")
    assert fingerprint(root) != fingerprint(roots[name])
    with pytest.raises(GuidedCDError, match="there is no folder"):
        fingerprint(tmp_path / "none")


def test_files_beside_the_clips_do_not_change_the_fingerprint(tmp_path):
    """Hidden folders and other files do not count; captions do, and a link whose file is missing is no error."""
    for name in ("a.mp4", "a.txt", "sub/b.mp4"):
        video_files.write(tmp_path / name, b"x")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nothing.mp4")
    dataset = load_plugins().get("dataset", "folder").build(FolderConfig(path=tmp_path))
    first = dataset.fingerprint()
    for name in (".cache/c.mp4", "runs/stores/1/store.json", "notes.txt"):
        video_files.write(tmp_path / name, b"x")

    assert dataset.fingerprint() == first
    video_files.write(tmp_path / "sub/b.json", b"{}")
    assert dataset.fingerprint() != first
