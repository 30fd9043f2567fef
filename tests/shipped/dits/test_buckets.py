"""Training over buckets: videos of several sizes and lengths in one run."""

from __future__ import annotations

import json

import fastvideo_files
import numpy as np
import pytest
import torch
import video_files
from safetensors.torch import load_file
from short_training import interrupted

from guidedcd.cli import main
from guidedcd.config.resolve import run_from_dict
from guidedcd.config.structure import changed
from guidedcd.data.inspection import inspect_data
from guidedcd.errors import GuidedCDError
from guidedcd.preprocessing.bucket_stores import open_stores, preprocess_all
from guidedcd.preprocessing.store import LatentStore
from guidedcd.preprocessing.verify import verify_store
from guidedcd.training.batches import Batches
from guidedcd.training.trainer import Trainer

BUCKETS = ["9x32x48", "5x48x32"]


def write_videos(folder, names):
    """Videos named w... of 9 frames of 32x48, p... of 7 frames of 48x32 and s... of 3 frames, with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {"w": (9, 32, 48, 3), "p": (7, 48, 32, 3), "s": (3, 32, 48, 3)}
    for name in names:
        frames = np.random.default_rng(ord(name[0]) + int(name[1:])).integers(0, 256, shapes[name[0]], np.uint8)
        (folder / f"{name}.mp4").write_bytes(video_files.video(list(frames), fps=16))
        (folder / f"{name}.txt").write_text(f"a red ball {'moves left' if name[0] == 'w' else 'in the rain'}")


def run_of(one, *data, buckets=BUCKETS, videos=6, size=None, rewards=None, **train):
    """A run over `videos` clips with an energy of the output."""
    return run_from_dict(
        {
            "seed": 3,
            "device": "cpu",
            "teacher": {one.family: {"path": str(one.folder), **(size or one.size)}},
            "data": list(data),
            "energies": {"x0-motion": {"relative": 0.2, "fraction": 1.0}},
            "rewards": rewards or {},
            "solver": {"steps": 20, "omega": [1.0, 3.0]},
            "preprocess": {
                "videos": videos,
                "draws_per_video": 2,
                "batch_size": 2,
                "shard_size": 2,
                "buckets": buckets,
                "max_skipped": 0.5,
            },
            "train": {"steps": 6, "batch_size": 2, "log_every": 1, **train},
        }
    )


def exit_code(arguments):
    """Run a command; its exit code."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return stopped.value.code or 0


def folder_of(path):
    """The dataset of a folder of videos."""
    return {"folder": {"path": str(path), "fps": 16.0}}


@pytest.mark.slow
def test_the_store_of_a_bucket_is_that_of_a_run_of_its_clips(tiny, tmp_path):
    """A run with buckets has the latents, predictions and captions that one run for each size has."""
    one = tiny("wan", "small")
    write_videos(tmp_path / "all", ["w1", "w2", "w3", "w4", "p5", "p6"])
    folders = preprocess_all(run_of(one, folder_of(tmp_path / "all")), store_folder=tmp_path / "stores")
    assert [folder.name for folder in folders] == BUCKETS
    names = {"9x32x48": ["w1", "w2", "w3", "w4"], "5x48x32": ["p5", "p6"]}
    for folder, (bucket, own) in zip(folders, names.items(), strict=True):
        frames, height, width = map(int, bucket.split("x"))
        write_videos(tmp_path / bucket, own)
        alone = run_of(
            one,
            folder_of(tmp_path / bucket),
            buckets=[],
            videos=len(own),
            size={"frames": frames, "height": height, "width": width},
        )
        (plain,) = preprocess_all(alone, store_folder=tmp_path / f"plain-{bucket}")
        store, expected = LatentStore(folder), LatentStore(plain)
        assert [sample["id"] for sample in store.samples] == sorted(own)
        assert len(store) == len(expected)
        for draw, other in zip(store, expected, strict=True):
            assert draw.index == other.index and torch.equal(draw.noise, other.noise)
            for name in ("z0", "cond_output", "uncond_output"):
                torch.testing.assert_close(getattr(draw, name), getattr(other, name))
    # The same command computes nothing again, and a sample computed again is equal.
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "stores").rglob("*.safetensors")}
    assert preprocess_all(run_of(one, folder_of(tmp_path / "all")), store_folder=tmp_path / "stores") == folders
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "stores").rglob("*.safetensors")} == files
    verify_store(folders[1], samples=1)


@pytest.mark.slow
def test_a_student_is_trained_on_all_buckets_and_resumes_exactly(tiny, tmp_path, monkeypatch):
    """Every batch has clips of one size, both sizes occur, rewards score them, and a resumed run is the same."""
    one = tiny("wan", "small")
    write_videos(tmp_path / "all", ["w1", "w2", "w3", "w4", "p5", "p6"])
    run = run_of(
        one,
        folder_of(tmp_path / "all"),
        rewards={"motion": {"frames": 4}},
        rollouts={"videos": 1},
        checkpoint={"every": 1},
    )
    stores = open_stores(run, preprocess_all(run, store_folder=tmp_path / "stores"))
    assert len(stores) == 12 and len(stores.samples) == 6
    seen = []
    assemble = Batches._assemble

    def record(self, draws, *args):
        seen.append({tuple(draw.z0.shape) for draw in draws})
        return assemble(self, draws, *args)

    monkeypatch.setattr(Batches, "_assemble", record)
    for name in "ab":
        (tmp_path / name).mkdir()
    Trainer(run, tmp_path / "a", stores, run.teacher.build()).fit()
    assert all(len(shapes) == 1 for shapes in seen) and len(set.union(*seen)) == 2
    with interrupted(monkeypatch, 4):
        Trainer(run, tmp_path / "b", stores, run.teacher.build()).fit()
    Trainer(run, tmp_path / "b", stores, run.teacher.build()).fit()
    weights, again = (load_file(tmp_path / x / "student" / "model.safetensors") for x in "ab")
    assert all(torch.equal(weights[key], again[key]) for key in weights)
    lines = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) and line["routed/motion"] == 1.0 for line in lines)


@pytest.mark.slow
def test_the_command_line_trains_over_buckets(tiny, tmp_path, monkeypatch, capsys):
    """`guidedcd train --preprocess.buckets` trains, and `data inspect` with the same flags counts the same clips."""
    one = tiny("wan", "small")
    write_videos(tmp_path / "all", ["w1", "w2", "w3", "p4", "p5", "s6"])
    monkeypatch.chdir(tmp_path)
    flags = [
        *("--teacher", f"wan:{one.folder}", *(f"--teacher.wan.{key}={value}" for key, value in one.size.items())),
        *("--data", f"folder:{tmp_path / 'all'}", "--data.folder.fps=16", "--rewards", "none", "--energies", "none"),
        *("--preprocess.buckets", ",".join(BUCKETS), "--preprocess.videos", "6", "--preprocess.max-skipped", "0.5"),
        *("--preprocess.draws-per-video", "2", "--train.steps", "2", "--train.batch-size", "2", "--device", "cpu"),
    ]
    assert exit_code(["data", "inspect", *flags, "--sample", "0"]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["folder", "9x32x48", "3", "50%", "0%", "0%", "0"] in table
    assert ["folder", "5x48x32", "2", "33%", "29%", "0%", "0"] in table
    assert any(row[:4] == ["folder", "none", "1", "17%"] and row[4:6] == ["too", "short"] for row in table)

    assert exit_code(["train", *flags, "--out", "run", "--skip-evaluation"]) == 0
    output = capsys.readouterr().out
    assert "bucket   9x32x48" in output and "bucket   5x48x32" in output
    assert "skipped  folder/2" not in output.split("bucket   5x48x32")[1]  # the short clip is listed once
    assert (tmp_path / "run" / "student" / "model.safetensors").exists()
    stores = sorted((tmp_path / "runs" / "stores").glob("*/store.json"))
    assert len(stores) == 2


@pytest.mark.slow
def test_parquet_of_several_sizes_falls_into_buckets(tiny, tmp_path, capsys):
    """Latents of two sizes in one folder fall into the buckets of exactly their sizes; others are dropped."""
    pytest.importorskip("pyarrow")
    one = tiny("wan", "small")
    random = torch.Generator().manual_seed(0)
    shapes = [(4, 3, 4, 6), (4, 2, 6, 4), (4, 3, 4, 6), (4, 1, 4, 6)]
    rows = [
        fastvideo_files.row(f"clip{n}", torch.randn(shape, generator=random), torch.randn(3, 16, generator=random))
        for n, shape in enumerate(shapes)
    ]
    fastvideo_files.write(tmp_path / "data" / "a.parquet", rows)
    run = run_of(one, {"fastvideo": {"path": str(tmp_path / "data")}}, videos=4)
    inspect_data(run, sample=0)
    assert "has latents of 1 frames of 32x48, the size of no bucket (1)" in capsys.readouterr().out
    stores = open_stores(run, preprocess_all(run, store_folder=tmp_path / "stores"))
    assert [[sample["id"] for sample in store.samples] for store in stores.stores] == [
        ["a/clip0", "a/clip2"],
        ["a/clip1"],
    ]
    assert [len(store.skipped) for store in stores.stores] == [1, 0]


@pytest.mark.slow
def test_impossible_buckets_are_one_sentence(tiny, tmp_path):
    """Impossible sizes, noise levels that depend on the size, data without sizes, empty buckets: one sentence each."""
    one, other = tiny("wan", "small"), tiny("ltx", "dynamic")
    write_videos(tmp_path / "all", ["s1", "s2"])
    data = folder_of(tmp_path / "all")
    with pytest.raises(GuidedCDError, match="wan: .* frames, not 8"):
        preprocess_all(run_of(one, data, buckets=["8x32x48"]))
    with pytest.raises(GuidedCDError, match="noise levels of teacher 'ltx' depend on the size"):
        preprocess_all(run_of(other, data, buckets=["5x64x64"]), store_folder=tmp_path / "ltx")
    with pytest.raises(GuidedCDError, match="does not state the sizes of its clips, for buckets"):
        preprocess_all(run_of(one, {"shapes": {"size": 6}}), store_folder=tmp_path / "shapes")
    run = run_of(one, data, buckets=["5x32x48"], videos=2)
    with pytest.raises(GuidedCDError, match="too short: 3 frames at the teacher's frame rate"):
        preprocess_all(run, store_folder=tmp_path / "empty")
    run = changed(run, preprocess={"max_skipped": 1.0})
    with pytest.raises(GuidedCDError, match="none of the clips falls into a bucket"):
        open_stores(run, preprocess_all(run, store_folder=tmp_path / "empty"))
