"""Training students of teachers with transformers: from a folder of diffusers to sampled videos."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from short_training import TWO_PROCESSES, interrupted, launch, trained

import guidedcd
from guidedcd.acceleration.blocks import below
from guidedcd.acceleration.switch import speed_up
from guidedcd.config.merge import choose
from guidedcd.config.resolve import run_from_dict
from guidedcd.config.structure import changed
from guidedcd.data.inspection import geometry_of
from guidedcd.diffusion.embeddings import guidance_embedding
from guidedcd.errors import GuidedCDError
from guidedcd.files import write_json
from guidedcd.models.student import Student
from guidedcd.plugins.registry import load_plugins
from guidedcd.preprocessing.store import LatentStore


def run_of(one, **train):
    """A run of four clips and three steps with an energy of the output."""
    options = {"path": str(one.folder), **one.size}
    return run_from_dict(
        {
            "seed": 3,
            "device": "cpu",
            "teacher": {one.family: options},
            "data": [{"shapes": {"size": 8}}],
            "energies": {"x0-motion": {"relative": 0.2, "fraction": 1.0}},
            "rewards": train.pop("rewards", {}),
            "solver": {"steps": 20, "omega": [1.0, 3.0]},
            "preprocess": {"videos": 4, "draws_per_video": 2, "batch_size": 2, "shard_size": 2},
            "student": train.pop("student", {}),
            "train": {"steps": 3, "batch_size": 2, "log_every": 1, "checkpoint": {"every": 1}, **train},
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "name", "student"),
    [("wan", "tokens", {}), ("cogvideox", "long", {"kind": "lora", "rank": 2}), ("ltx", "dynamic", {"ema": 0.9})],
)
def test_a_run_resumes_exactly_and_its_store_has_the_captions(tiny, tmp_path, monkeypatch, family, name, student):
    """Training learns, a resumed run repeats every number, and conditioning is read as the teacher embeds captions."""
    one = tiny(family, name)
    run = run_of(one, student=student, activation_checkpoint={"layers": "all"})
    straight = trained(run, tmp_path / "a", tmp_path / "s")
    with interrupted(monkeypatch, 3):
        trained(run, tmp_path / "b", tmp_path / "s")
    assert trained(run, tmp_path / "b", tmp_path / "s") == straight
    weights, again = (load_file(tmp_path / x / "student" / "model.safetensors") for x in "ab")
    assert all(torch.equal(weights[key], again[key]) for key in weights)
    guidance = [value for key, value in weights.items() if "guidance_embedding" in key]
    assert len(guidance) == 1 and guidance[0].abs().max() > 0
    assert straight[-1]["share/x0-motion"] == pytest.approx(0.2, rel=1e-3)

    teacher, store = one.teacher.teacher, LatentStore(tmp_path / "s")
    for draw in (store[0], store[5]):
        for key, value in teacher.embed([draw.sample.caption]).items():
            torch.testing.assert_close(draw.cond[key], value[0])
        assert draw.z0.shape == teacher.geometry.latent_shape
    size = (tmp_path / "s" / "shard-00000.safetensors").stat().st_size
    if family == "wan":  # its 512 tokens are not stored
        assert size < 2 * 512 * 16 * 4


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), [("wan", "tokens"), ("cogvideox", "long"), ("ltx", "dynamic")])
def test_fast_paths_train_the_same_student(tiny, tmp_path, family, name):
    """With `layers` and the blocks' attention kept, losses and weights are those of the stock network."""
    one = tiny(family, name)
    stock, fast = run_of(one), run_of(one, fast="layers", activation_checkpoint={"layers": "most"})
    expected = trained(stock, tmp_path / "a", tmp_path / "s")
    for line, other in zip(trained(fast, tmp_path / "b", tmp_path / "s"), expected, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    weights, others = (load_file(tmp_path / x / "student" / "model.safetensors") for x in "ab")
    fresh = one.teacher.teacher.network.state_dict()
    moved = max((weights[key] - value).abs().max() for key, value in fresh.items())
    assert max((weights[key] - others[key]).abs().max() for key in weights) < 0.05 * moved


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), [("wan", "experts"), ("ltx", "small")])
def test_the_command_line_trains_and_samples(tiny, tmp_path, family, name):
    """`guidedcd train --teacher FAMILY:FOLDER --energy x0-motion` makes a student that samples videos."""
    one = tiny(family, name)
    size = [f"--teacher.{family}.{key}={value}" for key, value in one.size.items()]
    command = [
        *(sys.executable, "-m", "guidedcd", "train", "--teacher", f"{family}:{one.folder}", *size),
        *("--data", "shapes", "--energy", "x0-motion", "--rewards", "", "--metrics", "flicker", "--device", "cpu"),
        *("--solver.steps", "20", "--preprocess.videos", "4", "--train.steps", "2", "--train.batch-size", "2"),
        *("--evaluate.prompts", "2", "--evaluate.videos", "1"),
    ]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert ("--preprocess.noise-range" in result.stdout + result.stderr) == (name == "experts")
    (folder,) = (path for path in (tmp_path / "runs").iterdir() if path.name != "stores")
    student = guidedcd.load_student(folder, device="cpu")
    videos = student(["a red ball"], steps=4)
    assert tuple(videos.shape[1:]) == one.teacher.teacher.geometry.pixel_shape and videos.isfinite().all()


def test_data_inspect_reads_no_weights(tiny, tmp_path):
    """The size of a teacher's videos is known from a folder without any weights."""
    one = tiny("wan", "small")
    folder = tmp_path / "wan"
    shutil.copytree(one.folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    chosen = choose("teacher", f"wan:{folder}", {}, "teacher", load_plugins())
    assert geometry_of(chosen).pixel_shape == (81, 3, 480, 832)


def test_another_size_for_adapters(tiny, tmp_path):
    """A LoRA student that was trained at the model's usual size is loaded for videos of another size."""
    one = tiny("cogvideox", "small")
    run = run_of(one, student={"kind": "lora", "rank": 2})
    config = {"cogvideox": {"path": str(one.folder)}}
    run = run_from_dict({**run.to_dict(), "teacher": config})
    folder = tmp_path / "run"
    folder.mkdir()
    write_json(folder / "run.json", run.to_dict())
    Student(run.teacher.build(), run.student, tuple(run.energies)).save(folder / "student")
    student = guidedcd.load_student(folder, device="cpu", size={"frames": 17})
    assert student.teacher.geometry.frames == 17
    assert student(["a red ball"], steps=1).shape == (1, 17, 3, 32, 32)
    with pytest.raises(GuidedCDError, match="is for UNets, not for CogVideoXTransformer3DModel"):
        guidedcd.export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_reward_trains_through_the_autoencoder(tiny, tmp_path):
    """A reward of frames, on predictions and on the student's own videos, has values and a share of the gradient."""
    rewards = {"motion": {"weight": 0.1, "frames": 5}}
    run = run_of(tiny("wan", "tokens"), rewards=rewards, rollouts={"videos": 1, "steps": 2})
    for line in trained(run, tmp_path / "a", tmp_path / "s"):
        assert abs(line["reward/motion"]) < 100 and line["reward/motion"] != 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallel", "precision", "loss_error", "weights_error"),
    [("ddp", "no", 1e-4, 0.01), ("fsdp", "no", 1e-4, 0.01), ("fsdp", "bf16", 0.02, 0.1)],
)
def test_two_processes_equal_one(tiny, tmp_path, parallel, precision, loss_error, weights_error):
    """Two gloo processes with half the batch give the losses and weights of one process, guidance inputs included."""
    one = run_of(tiny("wan", "tokens"), batch_size=4, precision=precision)
    straight = trained(one, tmp_path / "a", tmp_path / "s")
    two = changed(one, train={"batch_size": 2, "parallel": {"mode": parallel}})
    process = launch(two, tmp_path / "b", tmp_path / "s", TWO_PROCESSES)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    lines = [json.loads(line) for line in (tmp_path / "b" / "log.jsonl").read_text().splitlines()]
    for line, expected in zip(lines, straight, strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=loss_error, abs=1e-6)
    weights, other = (load_file(tmp_path / x / "student" / "model.safetensors") for x in "ab")
    fresh = one.teacher.build().network.state_dict()
    moved = sum((weights[key] - value).square().sum() for key, value in fresh.items()).sqrt()
    apart = sum((weights[key] - other[key]).square().sum() for key in weights).sqrt()
    assert apart < weights_error * moved


def test_guidance_inputs_learn_no_faster_than_other_layers(tiny):
    """A step of Adam moves the time embedding by at most the learning rate times the root of the guidance's width."""
    for family, name in (("wan", "tokens"), ("cogvideox", "long"), ("ltx", "dynamic")):
        teacher = tiny(family, name).teacher.teacher
        student = Student(teacher, energies=("energy",))
        embedding = student.network.get_submodule(teacher.time_embedding).guidance_embedding
        optimizer = torch.optim.Adam(embedding.parameters(), lr=1e-3)
        inputs = guidance_embedding(torch.tensor([2.0, 3.0]), torch.tensor([[0.01], [0.01]]))
        embedding.term(inputs).sum().backward()
        optimizer.step()

        moved = embedding.term(inputs).abs().max().item()
        assert 1e-3 < moved <= 1e-3 * embedding.proj.in_features**0.5
        assert torch.equal(embedding.term(inputs[:, :256]), embedding.term(inputs * (torch.arange(512) < 256)))


def test_the_guidance_of_a_student_is_no_obstacle_to_graphs(tiny):
    """A student's pass without gradient may be recorded, though a hook adds its guidance; other hooks prevent it."""
    for family, name in (("wan", "tokens"), ("cogvideox", "long"), ("ltx", "dynamic")):
        teacher = tiny(family, name).teacher.teacher
        network = Student(teacher, energies=("energy",)).network
        speed_up(network, graphs=True, repeated=teacher.blocks)
        with torch.no_grad():
            assert network.forward.possible([torch.zeros(1)], below(network))
            handle = next(iter(below(network))).register_forward_hook(lambda *args: None)
            assert not network.forward.possible([torch.zeros(1)], below(network))
            handle.remove()
