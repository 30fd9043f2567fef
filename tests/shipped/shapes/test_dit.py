"""The teacher `shapes-dit`: a video transformer of the proving ground."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from guidedcd_shapes import ShapesDitConfig, models
from guidedcd_shapes.recipe.sampling import FlowSampler
from guidedcd_shapes.recipe.session import Session
from safetensors.torch import load_file
from short_training import interrupted, trained

import guidedcd
from guidedcd.config.resolve import run_from_dict
from guidedcd.errors import GuidedCDError
from guidedcd.inference.pipeline import initial
from guidedcd.plugins.registry import load_plugins
from guidedcd.testing import checks, run_checks

PROMPTS = ["a red circle moving left", "a small blue star staying still on a dark background"]
SMALL = {**models.CONFIGS["dit"], "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 48, "num_layers": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of the recipe with a small random transformer and the embedded autoencoder and text encoder."""
    folder = tmp_path_factory.mktemp("dit")
    for name in ("vae", "text"):
        shutil.copy(models.WEIGHTS / f"{name}.safetensors", folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        models.save("dit", models.build("dit", SMALL), folder)
    (folder / "meta.json").write_text(json.dumps({"dit": SMALL, "variety": {"sway": 2.0}}))
    return folder


def run_of(folder, **changes):
    """A run of four clips and three steps."""
    return run_from_dict(
        {
            "seed": 3,
            "device": "cpu",
            "teacher": {"shapes-dit": {"path": str(folder)}},
            "data": [{"shapes": {"size": 8}}],
            "energies": {"x0-motion": {"relative": 0.2, "fraction": 1.0}},
            "rewards": {"clip": {}, "internv2": {}},
            "solver": {"steps": 20, "omega": [1.0, 3.0]},
            "preprocess": {"videos": 4, "draws_per_video": 2, "batch_size": 2, "shard_size": 2},
            "student": changes.get("student", {}),
            "train": {
                "steps": 3,
                "batch_size": 2,
                "log_every": 1,
                "checkpoint": {"every": 1},
                "rollouts": {"videos": 1, "steps": 2},
                "optimizer": {"lr": 1e-3},
            },
        }
    )


@pytest.mark.parametrize("steps", [4, 7])
def test_sampling_equals_the_loop_of_diffusers(folder, steps):
    """From the same noise, sample gives what a loop over FlowMatchEulerDiscreteScheduler and the network gives."""
    pipeline = guidedcd.load_teacher(f"shapes-dit:{folder}", device="cpu")
    teacher, latents = pipeline.teacher, initial(pipeline.teacher, [3, 5])
    scheduler = FlowMatchEulerDiscreteScheduler(shift=teacher.scheduler.config.shift)
    scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    z, cond, null = latents, *(x["prompt_embeds"] for x in (teacher.embed(PROMPTS), teacher.null(2)))
    with torch.no_grad():
        for t in scheduler.timesteps:
            c, u = (teacher.network(z, t.expand(2), text, return_dict=False)[0] for text in (cond, null))
            z = scheduler.step(u + 3.0 * (c - u), t, z, return_dict=False)[0]
        expected = models.decode(teacher.vae, z)
    videos = pipeline.sample(PROMPTS, steps=steps, omega=2.0, latents=latents)
    torch.testing.assert_close(videos, expected, rtol=0, atol=2e-5)
    assert videos.std() > 0.01
    if 1000 % steps == 0:
        on_grid = pipeline.sample(PROMPTS, steps=steps, omega=2.0, latents=latents, solver="ddim")
        torch.testing.assert_close(on_grid, expected, rtol=0, atol=1e-4)


def test_the_recipe_samples_as_the_teacher(folder, tmp_path):
    """The sampler that the recipe measures with gives the teacher's videos, with guidance omega + 1."""
    pipeline = guidedcd.load_teacher(f"shapes-dit:{folder}", device="cpu")
    teacher, latents = pipeline.teacher, initial(pipeline.teacher, [3, 5])
    session = Session(out=tmp_path, tiny=True, device="cpu")
    sampler = FlowSampler(session, models.load("dit", folder))
    cond, null = (x["prompt_embeds"] for x in (teacher.embed(PROMPTS), teacher.null(2)))
    z = sampler.euler(latents, cond, null, 5, 3.0)
    videos = pipeline.sample(PROMPTS, steps=5, omega=2.0, latents=latents)
    torch.testing.assert_close(models.decode(teacher.vae, z), videos, rtol=0, atol=2e-5)


def test_shapes_dit_passes_the_checks_of_a_teacher(folder):
    """Every rule of teachers holds: a fresh student predicts as the teacher, adapters, gradients, chosen frames."""
    results = run_checks(checks("teacher", "shapes-dit", config=ShapesDitConfig(path=str(folder))))
    failed = {result.check.description: result.reason for result in results if result.status != "passed"}
    failed.pop("Importing its plugin is quick, prints nothing and imports no large package.", None)
    assert not failed


def test_the_world_is_that_of_shapes(folder):
    """Latents, prompts and their scenes are those of `shapes`; the prediction is a flow with Wan's times."""
    teacher = guidedcd.load_teacher(f"shapes-dit:{folder}", device="cpu").teacher
    other = guidedcd.load_teacher("shapes", device="cpu").teacher
    video = torch.rand(1, *teacher.geometry.pixel_shape, generator=torch.Generator().manual_seed(0))
    assert isinstance(teacher.network, WanTransformer3DModel) and teacher.schedule.prediction == "flow"
    assert torch.equal(teacher.encode(video), other.encode(video)) and teacher.geometry == other.geometry
    assert teacher.prompts("motion", 3) == other.prompts("motion", 3)
    u = torch.tensor([0.25, 0.75])
    shifted = 3 * u / (1 + 2 * u)
    times = teacher.schedule.network_time(torch.tensor([249, 749]))
    torch.testing.assert_close(times, 1000 * shifted, rtol=0, atol=0.01)
    assert teacher.card() == []


def test_frames_are_decoded_alone(folder):
    """Chosen frames are those of the whole video for every kind of decoding, also with the gradient computed again."""
    teacher = guidedcd.load_teacher(f"shapes-dit:{folder}", device="cpu").teacher
    z = torch.randn(2, *teacher.geometry.latent_shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    expected = teacher.decode(z)[:, [1, 6]]
    (gradient,) = torch.autograd.grad(expected.square().sum(), z)
    for decode in (teacher.decode, teacher.decode_exactly, teacher.decode_recomputing):
        pixels = decode(z, [1, 6])
        torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.autograd.grad(pixels.square().sum(), z)[0], gradient, rtol=1e-4, atol=1e-5)


def test_a_folder_without_the_transformer_is_refused(tmp_path):
    """The message names the missing files and the way to train them."""
    component = load_plugins().get("teacher", "shapes-dit")
    with pytest.raises(GuidedCDError, match=r"'shapes-dit'.*lacks vae.*dit.safetensors.*guidedcd_shapes.recipe"):
        component.build(ShapesDitConfig(path=str(tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize("student", [{}, {"kind": "lora", "rank": 2}], ids=["full", "lora"])
def test_a_student_trains_and_resumes_exactly(folder, tmp_path, monkeypatch, student):
    """Losses are finite, rewards have values, weights change, and a resumed run repeats every number."""
    run = run_of(folder, student=student)
    straight = trained(run, tmp_path / "a", tmp_path / "s")
    with interrupted(monkeypatch, 3):
        trained(run, tmp_path / "b", tmp_path / "s")
    assert trained(run, tmp_path / "b", tmp_path / "s") == straight
    weights, again = (load_file(tmp_path / x / "student" / "model.safetensors") for x in "ab")
    assert all(torch.equal(weights[key], again[key]) for key in weights)
    assert straight[-1]["share/x0-motion"] == pytest.approx(0.2, rel=1e-3)
    assert all(line["reward/clip"] != 0 and math.isfinite(line["loss"]) for line in straight)


@pytest.mark.slow
def test_a_student_becomes_a_lora_file(folder, tmp_path):
    """`export --format lora` writes files that diffusers loads in a fresh process, with the scheduler's shift."""
    from guidedcd_dits import lora_files

    run = run_of(folder, student={"kind": "lora", "rank": 2})
    result = guidedcd.distil(run, out=tmp_path / "run", store=tmp_path / "store", evaluation=False)
    out = guidedcd.export(result, tmp_path / "out", format="lora")
    adapter = lora_files.read(out / "pytorch_lora_weights.safetensors", models.load("dit", folder))
    assert "predicts the same, largest relative error" in (out / "README.md").read_text(encoding="utf-8")
    assert adapter.sampling.shift == 3.0 and adapter.sampling.scheduler == "FlowMatchLCMScheduler"
