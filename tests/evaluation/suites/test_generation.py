"""Videos of a benchmark from a run's student, and scores of a program that stands for VBench's."""

from __future__ import annotations

import json
import re
import shlex
import stat
import sys
import textwrap

import pytest
import tiny_run
import torch

from guidedcd.cli import main
from guidedcd.data import media

LISTS = {"subject_consistency": ["a cat, running", "a dog"], "temporal_flickering": ["a still lake"]}


@pytest.fixture
def run(tmp_path, install, monkeypatch):
    """A finished run, and a folder `prompts` with two lists of VBench."""
    install("tiny-components", tiny_run.PLUGIN)
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts").mkdir()
    for name, prompts in LISTS.items():
        (tmp_path / "prompts" / f"{name}.txt").write_text("\n".join(prompts))
    return tiny_run.run_folder(tmp_path / "run")


@pytest.fixture
def suite(capsys):
    """Run `guidedcd evaluate run --suite vbench` with the dimensions of both lists; returns status, out and err."""

    def suite(*words: str, run: str = "run", dimensions: str = "dynamic_degree,temporal_flickering"):
        options = ["--suite.vbench.prompts", "prompts", "--suite.vbench.dimensions", dimensions]
        with pytest.raises(SystemExit) as exit_:
            main(["evaluate", *([run] if run else []), "--suite", "vbench", *options, *words])
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return suite


def names(run):
    """The files of the videos."""
    return sorted(path.name for path in (run / "suites" / "vbench" / "videos").iterdir())


def test_videos_have_official_names_and_recorded_seeds(run, suite):
    """Five videos of a prompt and 25 for flicker, with official names, true size, and one recorded seed each."""
    status, out, _ = suite("--generate", "--steps", "1")

    expected = [f"{prompt}-{copy}.mp4" for prompt in LISTS["subject_consistency"] for copy in range(5)]
    expected += [f"a still lake-{copy}.mp4" for copy in range(25)]
    folder = run / "suites" / "vbench"
    listed = json.loads((folder / "videos.json").read_text())["videos"]
    assert status == 0 and "the benchmark is complete" in out and names(run) == sorted(expected)
    assert len({one["seed"] for one in listed}) == len(expected)
    record = json.loads((folder / "records" / "a dog-3.json").read_text())
    assert record["prompt"] == "a dog" and record["seed"] == 28 and record["steps"] == 1
    assert next(one for one in listed if one["file"] == "a dog-3.mp4")["seed"] == 28
    frames, fps = media.read_video(folder / "videos" / "a dog-3.mp4")
    assert frames.shape == (4, 3, 16, 16) and fps == 8
    assert "subject_consistency has 2 prompts, but VBench has 72" in out


@pytest.mark.slow
def test_shards_equal_one_call_and_resume(run, suite, tmp_path):
    """Three shards sample the videos of one call, byte for byte; a video that is lost is sampled again."""
    words, some = ("--generate", "--steps", "1", "--out", "parts"), {"dimensions": "dynamic_degree"}
    assert "6 of 10 are still missing" in suite(*words, "--shard", "0/3", **some)[1]
    suite(*words, "--shard", "1/3", **some)
    assert "is complete" in suite(*words, "--shard", "2/3", **some)[1]
    lost = tmp_path / "parts" / "videos" / "a dog-1.mp4"
    content = lost.read_bytes()
    lost.unlink()

    out = suite(*words, **some)[1]

    assert "9 of 10 videos are finished already" in out and lost.read_bytes() == content
    status, _, err = suite("--generate", "--steps", "2", "--out", "parts", **some)
    assert status == 2 and "with steps 1 instead of 2" in err and err.count("\n") == 1


@pytest.mark.slow
def test_the_layout_folders_has_one_folder_for_each_list(run, suite):
    """With one folder for each list, videos lie in them."""
    suite("--generate", "--steps", "1", "--suite.vbench.layout", "folders", dimensions="motion_smoothness")

    assert names(run) == ["subject_consistency"]
    assert len(list((run / "suites" / "vbench" / "videos" / "subject_consistency").iterdir())) == 10


FAKE = """
import json, os, sys, time
words = sys.argv[1:]
options = dict(zip(words[1::2], words[2::2]))
if os.environ["PATH"].split(os.pathsep)[0] != os.path.dirname(os.path.abspath(sys.argv[0])):
    sys.exit("another environment is first on the PATH")
if os.environ.get("FAKE") == "silent" and words[0] == "evaluate":
    print("RuntimeError: NCCL needs CUDA")
if os.environ.get("FAKE") == "crash":
    print("CUDA error: no kernel image"); sys.exit(3)
if os.environ.get("FAKE") == "hang":
    print("loading", flush=True); time.sleep(60)
if words[0] == "static_filter":
    os.makedirs("filter_results/filtered_videos")
elif os.environ.get("FAKE") != "silent":
    name, folder = options["--dimension"], options["--videos_path"]
    count = len(os.listdir(folder))
    os.makedirs(options["--output_path"])
    with open(options["--output_path"] + "/results_eval_results.json", "w") as file:
        json.dump({name: [0.25 if name == "dynamic_degree" else 0.9, [{}] * count]}, file)
"""


@pytest.fixture
def program(tmp_path):
    """A program with the arguments and files of VBench's."""
    path = tmp_path / "bin" / "vbench"
    path.parent.mkdir()
    source = path.with_name("fake.py")
    source.write_text(textwrap.dedent(FAKE))
    # The first line of a script cannot name an interpreter whose path has a space.
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(source))} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return "bin/vbench"


@pytest.mark.slow
def test_the_installed_program_scores_each_dimension_once(run, suite, program):
    """The program scores each dimension once; the table names the others as missing."""
    suite("--generate", "--steps", "1")

    status, out, err = suite("--score", "--json", "--suite.vbench.program", program)

    content = json.loads(out)
    assert status == 1 and "dynamic_degree: " in err
    assert content["dimensions"]["dynamic_degree"] == 0.25 and content["dimensions"]["temporal_flickering"] == 0.9
    assert content["scores"]["total"] is None and "color" in content["missing"]
    again = suite("--score", "--suite.vbench.program", "bin/none")[1]
    assert again.count("is scored already") == 2
    (run / "suites" / "vbench" / "videos" / "a dog-1.mp4").write_bytes(b"another video")
    assert "bin/none cannot be started" in suite("--score", "--suite.vbench.program", "bin/none")[2]


FAILURES = {
    "crash": "VBench, dynamic_degree: .*vbench ended with status 3; the last that it printed is 'CUDA error: no kernel",
    "hang": "VBench, dynamic_degree: .*vbench did not end within 1 s, so it was ended; the last that it printed",
    "silent": "ended with status 0, but wrote no file results/.*; the last that it printed is 'RuntimeError: NCCL",
}


@pytest.mark.slow
@pytest.mark.parametrize(("how", "message"), FAILURES.items(), ids=FAILURES)
def test_a_program_that_fails_is_one_sentence(run, suite, program, monkeypatch, how, message):
    """A crash, a hang and a program without results are one sentence each, and leave no results."""
    suite("--generate", "--steps", "1", dimensions="dynamic_degree")
    monkeypatch.setenv("FAKE", how)

    words = ("--score", "--suite.vbench.program", program, "--suite.vbench.timeout", "1")
    status, _, err = suite(*words, dimensions="dynamic_degree")

    assert status == 2 and err.count("\n") == 1
    assert re.search(message, err)
    assert not list((run / "suites" / "vbench" / "results").glob("*_eval_results.json"))


WRONG = {
    "no prompts": (["--generate"], {"dimensions": "color"}, "prompts has no color.txt."),
    "unknown dimension": (["--generate"], {"dimensions": "colour"}, "VBench has no dimension 'colour'. Did you mean"),
    "incomplete": (["--score"], {}, "videos lacks 35 of 35 videos, such as 'a cat, running-0.mp4'. Generate them"),
    "no run": (["--generate"], {"run": ""}, "--generate needs a run's folder"),
    "no folder": (["--score"], {"run": ""}, "give a run's folder, or with --out FOLDER"),
    "no such run": (["--generate"], {"run": "gone"}, "there is no run folder gone."),
    "shard": (["--generate", "--shard", "3/3"], {}, "--shard must be I/N with 0 <= I < N, such as 0/4, not '3/3'"),
    "shard alone": (["--score", "--shard", "1/3"], {}, "--shard chooses videos that are sampled"),
    "both": (["--generate", "--table", "x"], {}, "--table reads results that are there"),
    "another option": (["--generate", "--teacher-omega", "2"], {}, "--teacher-omega belongs to the evaluation of"),
    "many shards": (["--generate", "--shard", "39/40"], {}, "shard 39 of 40 has no videos: there are only 35."),
}


@pytest.mark.parametrize(("words", "options", "message"), WRONG.values(), ids=WRONG)
def test_wrong_calls_are_one_sentence(run, suite, words, options, message):
    """Each wrong call is one sentence, and exit code 2; nothing is sampled."""
    status, _, err = suite(*words, **options)

    assert status == 2 and message in err and err.count("\n") == 1
    assert not (run / "suites").exists() or not list((run / "suites").rglob("*.mp4"))


def test_prompts_are_needed(run, capsys):
    """Without prompts, the error states the option and what VBench calls the files."""
    with pytest.raises(SystemExit):
        main(["evaluate", "run", "--suite", "vbench", "--generate"])

    assert "give --suite.vbench.prompts FOLDER, its folder prompts_per_dimension" in capsys.readouterr().err
