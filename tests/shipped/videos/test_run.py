"""Video files of every layout through a run: every listed clip is used or lost for a stated reason."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import video_files
from PIL import Image
from toy_plugin import CONFIG, PLUGIN

from guidedcd.cli import main
from guidedcd.config.resolve import run_from_dict
from guidedcd.config.run import Run
from guidedcd.data.inspection import inspect_data, readers
from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError
from guidedcd.preprocessing.preprocess import preprocess
from guidedcd.preprocessing.store import LatentStore

SIZES = {"webvid": 40, "vidgen": 40, "openvid": 40, "webdataset": 40, "folder": 20}
"""Clips per data set: 180 in all, of which 9, 5 %, are broken, each in its own way."""


@pytest.fixture
def toy(install, monkeypatch, tmp_path):
    """The toy plugin, installed; the test runs in its own folder."""
    monkeypatch.chdir(tmp_path)
    install("toy-components", PLUGIN)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """Five data sets in one folder, and by id what is wrong with the clips that are broken."""
    base, sound = tmp_path_factory.mktemp("mixed"), video_files.video()
    damaged = {name: (make(), reason) for name, (make, reason) in video_files.BROKEN.items()}

    def files(count: int, **broken: int) -> list[bytes | None]:
        return [
            damaged[{v: k for k, v in broken.items()}[i]][0] if i in broken.values() else sound for i in range(count)
        ]

    # One row each of webvid and vidgen stands in the list alone.
    video_files.webvid(
        base / "webvid", files(39, cut=3, empty=11), ["77,https://x,PT1S,000000_000050,\udce9 bad bytes"]
    )
    video_files.vidgen(base / "vidgen", files(39, missing=20), [{"vid": "--vid0-Scene-0000"}])
    video_files.openvid(base / "openvid", files(40, short=0, headless=39))
    video_files.shards(base / "webdataset", files(40, sound=17), size=16)
    video_files.folder(base / "folder", files(20, **{"no-video": 4}))
    lost = {
        "webvid": ("cut", "empty", "is not UTF-8 text"),
        "vidgen": ("missing", "has no caption"),
        "openvid": ("short", "headless"),
        "webdataset": ("sound",),
        "folder": ("no-video",),
    }
    return base, {name: [damaged[r][1] if r in damaged else r for r in reasons] for name, reasons in lost.items()}


def run_of(base: Path, count: int = 180, **changes) -> Run:
    """The toy teacher's run on all five data sets, by their sizes, distillation alone."""
    described = json.loads(json.dumps(CONFIG))
    described["data"] = [{name: {"path": str(base / name), "weight": SIZES[name]}} for name in SIZES]
    described["energy"] = {}
    described["preprocess"] = {"videos": count, "draws_per_video": 1, "batch_size": 16, "shard_size": 32}
    for key, value in changes.items():
        described[key] = {**described.get(key, {}), **value}
    return run_from_dict(described)


def test_every_listed_clip_is_used_or_lost_for_a_reason(toy, mixed, tmp_path, capsys):
    """Of 180 clips in five layouts with nine kinds of damage, 171 are used, and the report has the other nine."""
    base, expected = mixed
    folder = preprocess(run_of(base), store_folder=tmp_path / "store")
    report, opened = read_json(folder / "report.json"), LatentStore(folder)

    assert (report["listed"], report["used"], report["skipped"], report["draws"]) == (180, 171, 9, 171)
    assert {name: sum(share.values()) for name, share in report["datasets"].items()} == SIZES
    for name, reasons in expected.items():
        losses = [entry["reason"] for entry in report["losses"] if entry["id"].startswith(name)]
        assert len(losses) == len(reasons) == report["datasets"][name]["skipped"]
        for reason in reasons:
            assert [text for text in losses if re.search(reason, text)], (reason, losses)
    assert len({(sample["dataset"], sample["id"]) for sample in opened.samples}) == 171
    assert str(base) not in json.dumps(report)  # no part of a store depends on the location of the data
    printed = capsys.readouterr().out
    assert all(entry["reason"] in printed for entry in report["losses"])


def test_too_many_losses_stop_the_run_before_all_is_computed(toy, mixed, tmp_path):
    """With a smaller share allowed the run stops as soon as it is exceeded, and stops again when it is repeated."""
    run = run_of(mixed[0], preprocess={"max_skipped": 0.01, "shard_size": 20})
    for _ in range(2):
        with pytest.raises(GuidedCDError, match=r"\d of \d\d clips could not be used \(the first, openvid/0: celeb_0"):
            preprocess(run, store_folder=tmp_path / "store")
    assert 0 < len(list((tmp_path / "store").glob("shard-*.json"))) < 9


def test_equal_portions_of_two_data_sets(toy, mixed, tmp_path, monkeypatch):
    """`--data a --data b` takes equally many clips of each, whatever their sizes."""
    base = mixed[0]
    described = run_of(base, 30).to_dict() | {
        "data": [{"vidgen": {"path": str(base / "vidgen")}}, {"folder": {"path": str(base / "folder")}}]
    }
    folder = preprocess(run_from_dict(described), store_folder=tmp_path / "store")

    shares = read_json(folder / "report.json")["datasets"]
    assert {name: sum(share.values()) for name, share in shares.items()} == {"vidgen": 15, "folder": 15}


INSPECT = [
    "data",
    "inspect",
    "--preprocess.videos",
    "40",
    "--rewards",
    "hps,clip,internv2",
    "--data.webvid.begin",
    "start",
]


def test_inspect_shows_what_a_run_would_use(mixed, tmp_path, monkeypatch, capsys):
    """A row per data set and per reward with that reward's tokens, every reason, and a sheet of the frames."""
    base = mixed[0]
    monkeypatch.chdir(tmp_path)
    sets = ["--data", f"vidgen:{base}/vidgen", "--data", f"webvid:{base}/webvid", "--out", "seen/sheet.png"]
    with pytest.raises(SystemExit) as exit_:
        main([*INSPECT, *sets, "--routes", "short-caption,moving", "--routes.moving.never", "webvid", "--sample", "0"])
    out = capsys.readouterr().out
    rows = {
        tuple(line.split()[:2]): line.split()[2:] for line in out.splitlines() if line.startswith(("vidgen", "webvid"))
    }

    assert not exit_.value.code
    # clips, wanted, tried, readable, skipped, with known motion, not guided
    assert rows["vidgen", "40"] == ["20", "20", "20", "0", "0", "0"]
    assert rows["webvid", "40"] == ["20", "20", "18", "2", "0", "18"]
    # The proving ground's tokenizer has every word of "It rolls on and on." as one token.
    assert rows["vidgen", "hps"][:3] == ["77", "79", "79"] and rows["vidgen", "hps"][-3:] == ["0", "of", "20"]
    assert rows["vidgen", "internv2"][0] == "40" and rows["webvid", "internv2"][-3:] == ["18", "of", "18"]
    assert rows["vidgen", "distillation"][-3:] == ["20", "of", "20"]
    assert out.count("skipped  webvid: 00000") == 2 and "the file is empty" in out
    with Image.open("seen/sheet.png") as sheet:
        assert sheet.width > 8 * 90 and sheet.height > 12 * 90


def test_tokens_are_counted_without_loading_networks(tmp_path, monkeypatch):
    """Each reward's own tokenizer counts as the built reward does, and no weights are opened for it."""
    described = {
        "teacher": {"shapes": {}},
        "data": [{"shapes": {}}],
        "rewards": {"hps": {}, "clip": {}, "internv2": {}},
    }
    run = run_from_dict(described)
    built = run.build("reward")
    texts = ["a red ball", "a red ball rolls to the left, " * 9]
    for module in ("guidedcd.rewards.image_text", "guidedcd_internv2.reward"):
        monkeypatch.setattr(f"{module}.open_weights", None)

    reader_by_name = readers(run.chosen("reward"))
    for name, reward in built.items():
        assert reader_by_name[name].max_tokens == reward.max_tokens
        assert [reader_by_name[name].count(text) for text in texts] == [reward.count_tokens(text) for text in texts]


def test_the_published_tokenizers_need_no_weights():
    """Of rewards whose weights are not on this machine, captions are measured all the same: CLIP's are 77 tokens."""
    described = {
        "teacher": {"shapes": {}},
        "data": [{"shapes": {}}],
        "rewards": {"hps": {"path": "auto"}, "pickscore": {}},
    }
    reader_by_name = readers(run_from_dict(described).chosen("reward"))

    assert {name: (one.max_tokens, one.count("a red ball")) for name, one in reader_by_name.items()} == {
        "hps": (77, 5),
        "pickscore": (77, 5),
    }


def test_inspect_works_for_any_plugin(toy, tmp_path):
    """A teacher, data set and reward without attributes for inspection are built; unusable clips are listed."""
    described = {**CONFIG, "data": [{"toy": {"broken": 3}}], "preprocess": {"videos": 12}}
    (seen,) = inspect_data(run_from_dict(described), sample=6, sheet=tmp_path / "s.png")

    assert (seen.listed, seen.share, seen.tried) == (50, 12, 6)
    assert len(seen.skipped) + len(seen.samples) == 6 and seen.skipped[0] == "the file holds no video stream"
    assert all(route.rewards == {"toy"} for route in seen.routes)
    assert seen.samples[0].readers["toy"].count("abc") == 3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data", "toy", "--out", "sheet.jpg"], "sheet.jpg: the contact sheet is a PNG image"),
        (["--data", "toy", "--sample", "-1"], "--sample is -1; it must be at least 0."),
        (
            ["--data", "folder:broken"],
            "none of the clips of the sample can be used (the first: x: the file is empty).",
        ),
    ],
)
def test_a_mistake_of_inspect_is_one_sentence(toy, tmp_path, capsys, argv, message):
    """Another kind of image, a negative sample, nothing readable: one line, exit status 2, no sheet."""
    video_files.write(tmp_path / "broken" / "x.mp4", b"")
    video_files.write(tmp_path / "broken" / "x.txt", b"a ball")
    with pytest.raises(SystemExit) as exit_:
        main(["data", "inspect", "--teacher", "toy", *argv])
    captured = capsys.readouterr()

    assert exit_.value.code == 2 and message in captured.err and captured.err.count("\n") == 1
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.slow
def test_two_steps_are_trained_on_the_mixed_data(mixed, tmp_path, monkeypatch):
    """The embedded teacher distils from all five layouts with rewards and energy, through report and evaluation."""
    base = mixed[0]
    monkeypatch.chdir(tmp_path)
    argv = ["train", "--out", "run", "--store", "store", "--energy", "pta", "--rewards", "hps,clip"]
    for name in SIZES:
        argv += ["--data", f"{name}:{base / name}", f"--data.{name}.weight", str(SIZES[name])]
    argv += ["--preprocess.videos", "36", "--preprocess.draws-per-video", "1", "--solver.steps", "10"]
    argv += [
        "--preprocess.max-skipped",
        "0.2",
        "--train.steps",
        "2",
        "--train.batch-size",
        "2",
        "--train.log-every",
        "1",
    ]
    argv += ["--evaluate.prompts", "2", "--evaluate.videos", "1", "--evaluate.teacher-steps", "4"]
    with pytest.raises(SystemExit) as exit_:
        main(argv)

    assert not exit_.value.code
    log = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2] and all(line["loss"] == line["loss"] for line in log)
    report = read_json(Path("store/report.json"))
    assert report["used"] + report["skipped"] == report["listed"] == 36 and report["skipped"] > 0
    assert Path("run/report.html").is_file()
