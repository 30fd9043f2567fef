"""Sampling to files with a teacher: energies, metadata, continued calls, and mistakes."""

from __future__ import annotations

import json

import pytest
import torch
import toy_plugin

from guidedcd.cli import main
from guidedcd.config.kinds import Chosen
from guidedcd.config.sampling import GuidedConfig
from guidedcd.data import media
from guidedcd.errors import GuidedCDError
from guidedcd.inference.generate_teacher import generate_teacher
from guidedcd.inference.teacher_pipeline import TeacherPipeline

PROMPTS = ["a red circle", "a blue star"]


@pytest.fixture(autouse=True)
def clip(toy, tmp_path):
    """The toy plugin, installed, and a reference video."""
    video = torch.rand((3, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    return media.write_video(tmp_path / "clip.mp4", video, fps=8)


def sample(*arguments: str) -> int:
    """Run `guidedcd sample` on the CPU with two steps; the exit status."""
    with pytest.raises(SystemExit) as done:
        main(["sample", *arguments, "--device", "cpu", "--steps", "2"])
    return done.value.code or 0


def test_a_teacher_samples_without_a_run(tmp_path):
    """Videos, metadata and a contact sheet lie in `samples`; the default omega is that of an evaluation."""
    assert sample("--teacher", "toy", *PROMPTS) == 0
    about = json.loads((tmp_path / "samples" / "0001-a-blue-star.json").read_text())

    assert (about["steps"], about["omega"], about["seed"], about["solver"]) == (2, 7.5, 1, "ddim")
    assert "energies" not in about
    assert (tmp_path / "samples" / "contact_sheet.png").is_file()


def test_energies_guide_and_are_recorded(tmp_path, clip):
    """The metadata has the energy's options, and its value and share at every step."""
    energy = ("--energy", "toy", "--energy.toy.relative", "0.5", "--energy.toy.reference", "clean")
    assert sample("--teacher", "toy", *energy, "--reference", str(clip), *PROMPTS) == 0
    about = json.loads((tmp_path / "samples" / "0000-a-red-circle.json").read_text())
    steps = about["steps_of_energies"]["toy"]

    assert about["energies"]["toy"]["relative"] == 0.5
    assert steps["share"] == [pytest.approx(0.5), 0.0]
    assert steps["energy"][0] > 0 and steps["energy"][1] is None
    assert about["timesteps"] == [999, 499]


def test_a_guided_video_is_not_an_unguided_one(tmp_path, clip):
    """A call without energies refuses the folder of guided videos of the same names."""
    energy = Chosen("toy", toy_plugin.ToyEnergy(relative=0.5, reference="clean"))
    options = {"steps": 1, "out": tmp_path / "out", "device": "cpu"}
    generate_teacher("toy", PROMPTS[0], energies=[energy], guided=GuidedConfig(reference=clip), **options)

    with pytest.raises(GuidedCDError, match="exists, with energies .* instead of None"):
        generate_teacher("toy", PROMPTS[0], **options)


def test_a_long_prompt_is_no_run_folder(tmp_path, capsys):
    """A prompt that is too long for a file name is sampled; its file has a shortened name."""
    assert sample("--teacher", "toy", "a red circle " * 24) == 0
    assert len(list((tmp_path / "samples").glob("*.mp4"))) == 1
    assert capsys.readouterr().out.startswith("sample   loading PyTorch and the teacher\n")


def test_a_call_continues_where_it_stopped(tmp_path, monkeypatch, capsys):
    """Only the missing video is sampled again, and other settings in the folder are refused."""
    paths = generate_teacher("toy", PROMPTS, steps=1, out=tmp_path / "out", device="cpu")
    before = {path.name: path.read_bytes() for path in paths}
    media.sidecar(paths[1]).unlink()
    prompts = []
    real = TeacherPipeline.sample_guided
    monkeypatch.setattr(
        TeacherPipeline, "sample_guided", lambda self, x, *a, **k: prompts.append(x) or real(self, x, *a, **k)
    )
    generate_teacher("toy", PROMPTS, steps=1, out=tmp_path / "out", device="cpu")

    assert prompts == [[PROMPTS[1]]]
    assert {path.name: path.read_bytes() for path in paths} == before
    assert "1 of 2 videos are finished already" in capsys.readouterr().out
    with pytest.raises(GuidedCDError, match=r"with steps 1 instead of 2.*`out`"):
        generate_teacher("toy", PROMPTS, steps=2, out=tmp_path / "out", device="cpu")


def test_mistakes_are_one_sentence(tmp_path, clip, capsys):
    """Each wrong call exits 2 with one line that states the remedy."""
    guided = ("--teacher", "toy", "--energy", "toy", "--reference", str(clip))
    cases = {
        ("toy", "a prompt"): "'toy' is a teacher and no run folder: sample it with --teacher toy",
        ("--teacher", "toi", "a prompt"): "Did you mean 'toy'?",
        ("--teacher", "toy"): "no prompts: give some",
        ("--teacher", "toy", "--energy", "toy", "a prompt"): "energy 'toy' compares with a reference video",
        ("--teacher", "toy", "--energy", "toy", "--reference", "no.mp4", "x"): "there is no reference video no.mp4",
        (*guided, "--solver", "dpm++", "x"): "energies guide the ddim solver only. Use --solver ddim.",
        ("--teacher", "toy", "--reference", str(clip), "a prompt"): "choose some with --energies",
        ("--teacher", "toy", "--scale", "3", "a prompt"): "--energies.NAME.scale",
        ("--teacher", "toy", "--fraction", "0.3", "a prompt"): "--fraction belongs to a published student",
        ("--energy", "toy", "run", "a prompt"): "--energies guides a teacher",
        ("--teacher", "toy", str(tmp_path), "a prompt"): "a run has its own",
    }
    for arguments, sentence in cases.items():
        assert sample(*arguments) == 2
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1, error


def test_energies_of_a_program_guide_to_files(tmp_path, clip):
    """`generate_teacher` takes chosen components, as a Selection has them."""
    energy = Chosen("toy", toy_plugin.ToyEnergy(relative=0.5, reference="single-step"))
    guided = GuidedConfig(reference=clip, reference_prompt="a ring", rule="eps")
    (path,) = generate_teacher(
        "toy", "a red circle", energies=[energy], guided=guided, steps=1, omega=1.0, device="cpu", out=tmp_path / "o"
    )
    about = json.loads(media.sidecar(path).read_text())

    assert (about["rule"], about["reference_prompt"], about["omega"]) == ("eps", "a ring", 1.0)
