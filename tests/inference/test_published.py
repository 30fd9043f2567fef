"""Students that others published, sampled by the command, and videos of another size than a student was trained on."""

from __future__ import annotations

import json
import warnings

import attrs
import pytest
import tiny_run
import torch
from tiny_checkpoint import unet_state, write

import guidedcd
from guidedcd.cli import _plain_warnings, main
from guidedcd.config.kinds import Chosen
from guidedcd.config.resolve import run_from_dict
from guidedcd.data import media
from guidedcd.diffusion.sampler import sample_steps
from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError
from guidedcd.files import write_json
from guidedcd.inference import pipeline
from guidedcd.inference.generate import generate
from guidedcd.inference.published import load_published
from guidedcd.models.student import Student
from guidedcd.plugins.registry import load_plugins

SMALL = {"frames": 2, "height": 4, "width": 8}


@pytest.fixture
def base(tmp_path) -> list[str]:
    """Flags of a tiny VideoCrafter2."""
    path, config = write(tmp_path)
    sizes = [text for name, value in SMALL.items() for text in (f"--{name}", str(value))]
    return ["--teacher", f"videocrafter2:{path}", "--arch", str(config), *sizes]


@pytest.fixture
def student(tmp_path):
    """A file like unet_mg.pt."""
    torch.save(unet_state(student=1), tmp_path / "unet_mg.pt")
    return tmp_path / "unet_mg.pt"


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """Run `guidedcd sample`: its exit status and its standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as done:
            main(["sample", *map(str, argv)])
        return done.value.code or 0, capsys.readouterr().err

    return run


def teacher(path, config, **options) -> Chosen:
    """The component with its options."""
    config_class = load_plugins().get("teacher", "videocrafter2").config
    return Chosen("videocrafter2", config_class(path=str(path), arch=str(config), **{**SMALL, **options}))


def test_the_published_files_are_sampled_by_the_command(shared, command, tmp_path):
    """T2V-Turbo's own files with their base: videos and their metadata, and a note on the missing matrix."""
    base, file = shared("videocrafter2", "vc2_tiny"), shared("videocrafter2", "t2v_turbo_v1_lora_tiny", "unet_lora.pt")
    named = ["--teacher", f"videocrafter2:{base / 'model.safetensors'}", "--arch", base / "config.json"]
    size = ["--frames", 3, "--height", 32, "--width", 48, "--fps", 16]
    with pytest.warns(UserWarning, match="T2V-Turbo v1's file does not hold the matrix"):
        assert command("--student", file, *named, *size, "--steps", 8, "a prompt", "another") == (0, "")

    about = json.loads((tmp_path / "samples" / "0001-another.json").read_text())
    assert (about["frames"], about["fps"], about["height"], about["steps"]) == (3, 16, 256, 8)
    assert (about["run"], about["teacher"], about["scale"], about["seed"]) == ("unet_lora", "videocrafter2", {}, 1)


@pytest.mark.parametrize("steps", [4, 8, 16])
def test_a_published_student_receives_its_inputs_of_training(command, base, student, tmp_path, steps):
    """omega 7.5, lambda 500/1e4 in the noisier half and 0 below, on the released sampler's grid."""
    status, message = command("--student", student, *base, "--steps", steps, "a cat")
    assert status == 0, message

    loaded = load_published(student, teacher(tmp_path / "model.ckpt", tmp_path / "config.json"))
    told = []
    network = loaded.student.forward
    loaded.student.forward = lambda z, t, cond, omega, lambdas: (
        told.append((int(t[0]), float(omega[0]), round(float(lambdas[0, 0]), 6))) or network(z, t, cond, omega, lambdas)
    )
    video = loaded(["a cat"], steps, [0], omega=7.5)[0]

    grid = [4 + 5 * i for i in range(200)][:: -(200 // steps)][:steps]
    assert told == [(t, 7.5, 0.05 if t >= 500 else 0.0) for t in grid]
    shown = media.read_video(tmp_path / "samples" / "0000-a-cat.mp4")[0][:, :, 32::64, 32::64]
    assert (shown - video).abs().mean() < 0.05


def test_noise_is_given_again_between_the_steps(student, base, tmp_path):
    """Every step but the first starts from the last one's prediction, noised to its timestep with noise of its own."""
    loaded = load_published(student, teacher(tmp_path / "model.ckpt", tmp_path / "config.json"))
    first, noises = (
        pipeline.initial(loaded.teacher, [0]),
        [pipeline.initial(loaded.teacher, [0], i) for i in (1, 2, 3, 4)],
    )
    cond, schedule = loaded.teacher.embed(["a cat"]), loaded.teacher.schedule
    steps = list(sample_steps(loaded.student, loaded.teacher, cond, first, 4, 7.5, [0.05], noises=noises))

    for step, after, noise in zip(steps, steps[1:], noises, strict=False):
        assert torch.equal(step.z, schedule.add_noise(step.denoised, noise, torch.tensor([after.t])))
    assert [step.t for step in steps] == [999, 749, 499, 249]


def test_our_warnings_are_one_line():
    """A warning of guidedcd is its sentence without the line of code; other packages' warnings stay as usual."""
    with _plain_warnings():
        ours, theirs = (warnings.formatwarning("zero is used", UserWarning, f, 1) for f in (guidedcd.__file__, "x.py"))

    assert ours == "warning: zero is used\n"
    assert "x.py:1: UserWarning" in theirs and "UserWarning" in warnings.formatwarning("a", UserWarning, "y", 1)


@pytest.mark.slow
def test_strength_and_fraction_are_free_as_in_the_released_sampler(command, base, student, tmp_path):
    """Any scale and fraction reach the network and the metadata; negative scales and fractions beyond 1 do not."""
    for scale, fraction in ((0, 1), (1000, 0.3), (200, 0)):
        out = tmp_path / f"{scale}-{fraction}"
        flags = ("--scale", scale, "--fraction", fraction, "--steps", 2, "--out", out)
        assert command("--student", student, *base, *flags, "a cat") == (0, "")
        about = json.loads((out / "0000-a-cat.json").read_text())
        assert (about["scale"], about["fraction"]) == ({"pta": scale}, {"pta": fraction})

    for flags, message in (
        (("--scale=-1",), "not at -1"),
        (("--fraction", 1.5), "--fraction is 1.5; it must be from 0 to 1"),
    ):
        status, error = command("--student", student, *base, *flags, "a cat", "--out", "other")
        assert (status, error.count("\n")) == (2, 1) and message in error


def test_the_fraction_bounds_the_timesteps_with_lambda(student, base, tmp_path):
    """With 0.3, lambda is an input at the timesteps from 700 on, as in the released app."""
    built = teacher(tmp_path / "model.ckpt", tmp_path / "config.json")
    loaded = load_published(student, built, fraction=0.3)
    told = []
    network = loaded.student.forward
    loaded.student.forward = lambda z, t, cond, omega, lambdas: (
        told.append((int(t[0]), round(float(lambdas[0, 0]), 6))) or network(z, t, cond, omega, lambdas)
    )
    loaded("a cat", omega=7.5, scale={"pta": 1000.0})

    assert told == [(999, 0.1), (749, 0.1), (499, 0.0), (249, 0.0)]


def test_mistakes_are_one_line_and_leave_nothing(command, base, student, tmp_path):
    """Missing, truncated, foreign and unsafe files, wrong numbers and missing flags: one line, exit 2, no folder."""
    whole = student.read_bytes()
    (tmp_path / "short.pt").write_bytes(whole[: len(whole) // 2])
    torch.save(unet_state(), tmp_path / "plain.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    (tmp_path / "code.pt").write_bytes(b"cposix\nsystem\n(S'touch run-by-mistake'\ntR.")
    alone = ["--student", student, "a cat"]
    for wrong, text in [
        (["--student", "none.pt", *base, "a cat"], "hf download"),
        (["--student", "short.pt", *base, "a cat"], "short.pt is truncated"),
        (["--student", "plain.pt", *base, "a cat"], "no student"),
        (["--student", "other.pt", *base, "a cat"], "missing"),
        (["--student", "code.pt", *base, "a cat"], "holds code"),
        (["--student", tmp_path, *base, "a cat"], "is a folder"),
        (alone, "needs its base model"),
        ([*alone, "--teacher", "videocrafter"], "Did you mean 'videocrafter2'"),
        ([*alone, "--teacher", "shapes", "--arch", "x.json"], "no option 'arch'"),
        ([*alone, *base, "--fps", "0"], "--fps is 0; it must be at least 1"),
        ([*alone, *base, "--fps", "8.5"], "--fps is '8.5'; it must be a whole number"),
        ([*alone, *base, "--steps", "201"], "--steps is 201; it must be from 1 to 200"),
        ([*alone[:2], *base], "no prompts"),
        ([student, "a cat"], "--student"),
        ([], "give a run's folder"),
    ]:
        status, message = command(*wrong)
        assert (status, message.count("\n")) == (2, 1), (wrong, message)
        assert text in message
    height = base.index("--height") + 1
    assert "multiples of" in command(*alone, *base[:height], "5", *base[height + 1 :])[1]
    assert not (tmp_path / "samples").exists() and not (tmp_path / "run-by-mistake").exists()


@pytest.fixture(params=["full", "lora"])
def run(request, install, tmp_path, base):
    """A run of a tiny VideoCrafter2."""
    install("tiny-components", tiny_run.PLUGIN)
    folder = tiny_run.run_folder(tmp_path / "run")
    described = run_from_dict(read_json(folder / "run.json"))
    chosen = teacher(tmp_path / "model.ckpt", tmp_path / "config.json")
    described = attrs.evolve(
        described, teacher=chosen, student=attrs.evolve(described.student, kind=request.param, rank=2)
    )
    write_json(folder / "run.json", described.to_dict())
    Student(chosen.build(), described.student).save(folder / "student")
    return folder


def test_a_student_samples_videos_of_another_size(run, tmp_path):
    """Frames, height and width can be chosen where the teacher has them as options; also with adapters."""
    (path,) = generate(run, "a cat", steps=1, frames=3, height=8, out=tmp_path / "s")

    about = json.loads(media.sidecar(path).read_text())
    assert (about["frames"], about["height"] // about["enlarge"], about["width"] // about["enlarge"]) == (3, 8, 8)
    with pytest.raises(GuidedCDError, match=r"frames 3 instead of 2"):
        generate(run, "a cat", steps=1, height=8, out=tmp_path / "s")
    with pytest.raises(GuidedCDError, match="`frames` is 0; it must be from 1 to 10,000"):
        generate(run, "a cat", frames=0)


def test_a_teacher_of_one_size_refuses_another(install, command, tmp_path):
    """A teacher without such options, and flags of published students, are refused by name."""
    install("tiny-components", tiny_run.PLUGIN)
    folder = tiny_run.run_folder(tmp_path / "run")

    assert "teacher 'tiny' has no option 'frames'" in command(folder, "a cat", "--frames", 2)[1]
    assert "--fps belongs to a published student" in command(folder, "a cat", "--fps", 2)[1]
    assert "--teacher belongs to a published student" in command(folder, "a cat", "--teacher", "shapes")[1]
