"""Sampling to files: reproducible one by one, resumable, and honest about what a student was trained for."""

from __future__ import annotations

import json

import pytest
import tiny_run
import torch

from guidedcd.cli import main
from guidedcd.data import media
from guidedcd.errors import GuidedCDError
from guidedcd.inference import pipeline
from guidedcd.inference.generate import generate
from guidedcd.locks import locked

PROMPTS = ["a red circle moving left", "a small blue star", "a green ring"]


@pytest.fixture(autouse=True)
def plugin(install):
    """The tiny teacher's plugin, installed."""
    install("tiny-components", tiny_run.PLUGIN)
    torch.set_num_threads(1)


@pytest.fixture
def run(tmp_path):
    """A finished run without energies."""
    return tiny_run.run_folder(tmp_path / "run")


def content(folder) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_videos_lie_in_the_run_with_their_metadata(run):
    """Each prompt gives an mp4 and its JSON, all prompts one contact sheet."""
    paths = generate(run, PROMPTS)

    assert [p.name for p in paths] == [
        "0000-a-red-circle-moving-left.mp4",
        "0001-a-small-blue-star.mp4",
        "0002-a-green-ring.mp4",
    ]
    assert (run / "samples" / "contact_sheet.png").is_file()
    about = json.loads(media.sidecar(paths[1]).read_text())
    assert about["prompt"] == "a small blue star"
    assert (about["seed"], about["steps"], about["omega"], about["scale"]) == (1, 2, 7.5, {})
    assert (about["frames"], about["fps"], about["enlarge"], about["height"]) == (4, 8, 16, 256)


def test_a_student_of_another_run_is_refused(tmp_path):
    """A student whose energies the run.json beside it lacks was put there by mistake: the error names both files."""
    run = tiny_run.run_folder(tmp_path / "run", energies={"calm": {}})
    about = json.loads((run / "student" / "student.json").read_text())
    (run / "student" / "student.json").write_text(json.dumps({**about, "energies": ["other"]}))

    with pytest.raises(GuidedCDError, match=r"student\.json names the energy 'other', which .*run\.json does not have"):
        pipeline.StudentPipeline.from_run(run)


def test_a_video_does_not_depend_on_its_batch(run):
    """A prompt's video is the same alone, with its own seed, as in the middle of a batch."""
    loaded = pipeline.StudentPipeline.from_run(run)
    together = loaded(PROMPTS, 2, [5, 6, 7], omega=2.0)
    alone = loaded(PROMPTS[1], 2, [6], omega=2.0)

    torch.testing.assert_close(together[1:2], alone)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_one_video_can_be_made_again(run, tmp_path):
    """The seed in the metadata, with its prompt alone, gives the same video."""
    path = generate(run, PROMPTS, seed=10, out=tmp_path / "all")[2]
    seed = json.loads(media.sidecar(path).read_text())["seed"]
    (again,) = generate(run, PROMPTS[2], seed=seed, out=tmp_path / "one")

    torch.testing.assert_close(media.read_video(path)[0], media.read_video(again)[0], atol=0.02, rtol=0)


def test_finished_videos_are_not_made_again(run, monkeypatch, capsys):
    """A second run makes what is missing only; a half-written video without metadata counts as missing."""
    paths = generate(run, PROMPTS)
    before = content(run / "samples")
    media.sidecar(paths[1]).unlink()
    sampled = []
    real = pipeline.StudentPipeline.__call__
    monkeypatch.setattr(
        pipeline.StudentPipeline, "__call__", lambda self, x, *a, **k: sampled.append(x) or real(self, x, *a, **k)
    )
    generate(run, PROMPTS)

    assert sampled == [[PROMPTS[1]]]
    assert content(run / "samples") == before
    assert "2 of 3 videos are finished already" in capsys.readouterr().out


def test_other_settings_do_not_mix(run):
    """Videos of other settings in the same folder are an error that names the setting, not a silent mixture."""
    generate(run, PROMPTS[:1])
    with pytest.raises(GuidedCDError, match=r"with steps 2 instead of 4.*`out`"):
        generate(run, PROMPTS[:1], steps=4)


def test_a_gif_can_lie_beside(run):
    """With gif=True every mp4 has a gif of the same name, also where the mp4 was there before."""
    generate(run, PROMPTS[:1])
    (path,) = generate(run, PROMPTS[:1], gif=True)

    assert path.with_suffix(".gif").is_file()


def test_vbench_finds_its_names(run, tmp_path):
    """VBench reads "PROMPT-N.mp4" at true size; every copy has another seed."""
    paths = generate(run, ["a red circle, moving"], per_prompt=2, vbench_names=True, out=tmp_path / "v")

    assert [p.name for p in paths] == ["a red circle, moving-0.mp4", "a red circle, moving-1.mp4"]
    videos = [media.read_video(p)[0] for p in paths]
    assert videos[0].shape == (4, 3, 16, 16)
    assert (videos[0] - videos[1]).abs().max() > 0.02


def test_prompts_come_from_files(run, tmp_path):
    """A text file has a prompt a line, JSON a list as VBench's; "@FILE" stands for its prompts."""
    (tmp_path / "p.txt").write_text("a red circle\n\n  a blue star \n")
    (tmp_path / "p.json").write_text(json.dumps([{"prompt_en": "a ring"}, "a cross"]))
    paths = generate(run, [f"@{tmp_path / 'p.txt'}", "one more", f"@{tmp_path / 'p.json'}"])

    assert [p.stem[5:] for p in paths] == ["a-red-circle", "a-blue-star", "one-more", "a-ring", "a-cross"]


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("none.txt", None, "no prompts file"),
        ("e.txt", "\n", "contains no prompts"),
        ("b.json", "{", "damaged and cannot be read as JSON"),
    ],
)
def test_a_bad_prompts_file_is_a_clear_error(run, tmp_path, name, text, match):
    """A file that is missing, empty or malformed is an error."""
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(GuidedCDError, match=match):
        generate(run, tmp_path / name)


def test_a_folder_without_student_is_an_error_with_a_remedy(tmp_path, run):
    """Neither run nor student, a run that is not trained yet, and a student without its run have different errors."""
    with pytest.raises(GuidedCDError, match="there is no run folder"):
        pipeline.StudentPipeline.from_run(tmp_path / "nothing")
    (run / "student").rename(tmp_path / "lonely")
    with pytest.raises(GuidedCDError, match="Start the same run again to continue it"):
        pipeline.StudentPipeline.from_run(run)
    lonely = tmp_path / "a" / "b" / "c" / "d"
    lonely.parent.mkdir(parents=True)
    (tmp_path / "lonely").rename(lonely)
    with pytest.raises(GuidedCDError, match=r"names its\s+teacher"):
        pipeline.StudentPipeline.from_run(lonely)


def test_a_student_folder_finds_its_run(run):
    """The student's folder inside a run is as good as the run's."""
    assert pipeline.StudentPipeline.from_run(run / "student").folder == run


def test_a_scale_without_energies_is_refused(run):
    """A student without energies has no slider."""
    with pytest.raises(GuidedCDError, match="without energies"):
        pipeline.strengths(pipeline.StudentPipeline.from_run(run), 0.3)


def test_a_student_of_one_scale_accepts_that_scale_and_0(tmp_path):
    """A student trained at one scale takes that and 0; the error tells how to train a slider."""
    loaded = pipeline.StudentPipeline.from_run(
        tiny_run.run_folder(tmp_path / "r", energies={"calm": {"relative": 0.3}})
    )

    assert pipeline.strengths(loaded) == {"calm": 0.3}
    assert pipeline.strengths(loaded, 0) == {"calm": 0}
    with pytest.raises(GuidedCDError, match=r"at 0\.3 and without it \(0\).*`energies\.calm\.scale_range`"):
        pipeline.strengths(loaded, 0.2)


def test_a_student_of_a_range_accepts_scales_in_it(tmp_path):
    """A student trained on a range takes any scale in it, and its energies by name."""
    energies = {"calm": {"scale": 500.0, "scale_range": (100.0, 800.0)}}
    loaded = pipeline.StudentPipeline.from_run(tiny_run.run_folder(tmp_path / "r", energies=energies))

    assert pipeline.strengths(loaded) == {"calm": 500.0}
    assert pipeline.strengths(loaded, {"calm": 200}) == {"calm": 200}
    with pytest.raises(GuidedCDError, match="from 100 to 800"):
        pipeline.strengths(loaded, 900)
    with pytest.raises(GuidedCDError, match="no energy 'pta'"):
        pipeline.strengths(loaded, {"pta": 200})


def test_the_scale_changes_the_video(tmp_path):
    """The scale is an input of the student: off and on give different videos from the same noise."""
    loaded = pipeline.StudentPipeline.from_run(tiny_run.run_folder(tmp_path / "r", energies={"calm": {"scale": 500.0}}))
    on, off = (loaded(PROMPTS[:1], 2, omega=2.0, scale=s) for s in (None, 0))

    assert (on - off).abs().max() > 1e-4


def test_teacher_and_student_start_from_the_same_noise(run):
    """A fresh student is its teacher: one consistency step of it equals the teacher's prediction from that noise."""
    loaded = pipeline.StudentPipeline.from_run(run)

    assert torch.equal(pipeline.initial(loaded.teacher, [3]), pipeline.initial(loaded.teacher, [3]))
    assert not torch.equal(pipeline.initial(loaded.teacher, [3]), pipeline.initial(loaded.teacher, [3], draw=1))


def test_half_precision_gives_nearly_the_same_video(run):
    """Networks in bfloat16, noise and solver in float32: the video stays the same to the eye."""
    full, half = (
        pipeline.StudentPipeline.from_run(run, dtype=dtype)(PROMPTS[:2], 2, [0, 1], omega=2.0)
        for dtype in ("float32", "bfloat16")
    )

    assert full.dtype == half.dtype == torch.float32
    assert 0 < (full - half).abs().mean() < 0.02


def test_the_command_writes_videos(run, capsys):
    """`guidedcd sample` takes prompts, files and options, and exits 2 with one line on a mistake."""
    with pytest.raises(SystemExit) as done:
        main(["sample", str(run), "a red dot", "--steps", "1", "--omega", "3", "--gif"])

    assert not done.value.code
    about = json.loads((run / "samples" / "0000-a-red-dot.json").read_text())
    assert (about["steps"], about["omega"]) == (1, 3.0)
    assert (run / "samples" / "0000-a-red-dot.gif").is_file()

    for wrong in (
        ["--scale", "x"],
        ["--scale", "0.3"],
        ["--per-prompt", "0"],
        ["--seed", "-1"],
        ["--steps", "2"],
        ["--dtype", "int"],
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            main(["sample", str(run), "a red dot", *wrong])
        assert (done.value.code, capsys.readouterr().err.count("\n")) == (2, 1), wrong


@pytest.mark.parametrize("prompts", [["a red circle", "a red circle"], ["a/b", "a b"], ["A b", "a b"]])
def test_no_video_replaces_another_of_its_name(run, prompts):
    """Prompts that would give one file name are refused before sampling; other names keep both."""
    with pytest.raises(GuidedCDError, match="names a video by its prompt"):
        generate(run, prompts, vbench_names=True)

    assert len({path.name for path in generate(run, prompts, steps=1)}) == 2


def test_names_and_seeds_have_limits(run):
    """A prompt too long for a name, a prompt that is no text, and seeds beyond 2^63 - 1 are refused."""
    with pytest.raises(GuidedCDError, match="has at most 255"):
        generate(run, ["a " * 200], vbench_names=True)
    with pytest.raises(GuidedCDError, match="no UTF-8 text"):
        generate(run, ["a \udcff"])
    for options in ({"seed": 2**63}, {"seed": -1}, {"seed": 2**63 - 2}):
        with pytest.raises(GuidedCDError, match="must be a whole number from 0 to"):
            generate(run, PROMPTS, **options)


def test_two_samplings_into_one_folder_exclude_each_other(run, tmp_path):
    """While one process writes videos into a folder, another is refused."""
    with locked(tmp_path / "out", "the folder"), pytest.raises(GuidedCDError, match="written by another process"):
        generate(run, PROMPTS, out=tmp_path / "out", steps=1)
