"""Teachers with transformers on a GPU: the same videos as on the CPU, and training in bfloat16."""

from __future__ import annotations

import math

import pytest
import tiny_pipelines
import torch
from short_training import trained

import guidedcd
from guidedcd.acceleration.switch import speed_up
from guidedcd.config.resolve import run_from_dict
from guidedcd.models.student import Student

ONE_EACH = pytest.mark.parametrize(("family", "name"), [(f, next(iter(s))) for f, s in tiny_pipelines.SIZES.items()])


@pytest.mark.gpu
@ONE_EACH
def test_the_gpu_samples_the_same_videos(tiny, family, name):
    """From the same noise, videos of the GPU differ from those of the CPU by rounding alone."""
    one = tiny(family, name)
    on_gpu = guidedcd.load_teacher(f"{family}:{one.folder}", device="cuda", size=one.size)
    options = {"steps": 3, "seeds": [1, 2], "omega": 3.0}
    prompts = ["a red ball moves left", "two boats"]
    videos = [teacher.sample(prompts, **options).cpu() for teacher in (one.teacher, on_gpu)]
    assert videos[0].std() > 0.01
    torch.testing.assert_close(videos[1], videos[0], rtol=0, atol=5e-3)


@pytest.mark.gpu
@ONE_EACH
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_student_trains_on_the_gpu(tiny, tmp_path, family, name, precision):
    """A run with an energy of the output has finite losses in float32 and in bfloat16."""
    one = tiny(family, name)
    run = run_from_dict(
        {
            "device": "cuda",
            "teacher": {family: {"path": str(one.folder), **one.size}},
            "data": [{"shapes": {"size": 8}}],
            "energies": {"x0-motion": {"relative": 0.2, "fraction": 1.0}},
            "solver": {"steps": 20, "omega": [1.0, 3.0]},
            "preprocess": {"videos": 4, "draws_per_video": 2, "batch_size": 2, "shard_size": 2},
            "train": {"steps": 3, "batch_size": 2, "log_every": 1, "precision": precision},
        }
    )
    lines = trained(run, tmp_path / "a", tmp_path / "s")
    assert all(math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"]) for line in lines)
    assert lines[-1]["share/x0-motion"] == pytest.approx(0.2, rel=1e-2)


@pytest.mark.gpu
@ONE_EACH
@pytest.mark.parametrize("compile", [None, "blocks"])
def test_a_student_is_replayed_with_its_guidance(tiny, family, name, compile):
    """A CUDA graph of a student reads the guidance of each pass, and the weights of each step."""
    one = tiny(family, name)
    teacher = guidedcd.load_teacher(f"{family}:{one.folder}", device="cuda", size=one.size).teacher
    student = Student(teacher, energies=("energy",)).eval()
    embedding = student.network.get_submodule(teacher.time_embedding).guidance_embedding
    embedding.proj.weight.data.normal_(generator=torch.Generator("cuda").manual_seed(0))
    generator = torch.Generator("cuda").manual_seed(1)
    z = torch.randn(2, *teacher.geometry.latent_shape, device="cuda", generator=generator)
    t, cond = torch.tensor([999, 500], device="cuda"), teacher.embed(["a red ball", "two boats"])

    def predictions(scale: float) -> list[torch.Tensor]:
        guidance = [(torch.full((2,), omega), torch.full((2, 1), 0.1 * omega)) for omega in (1.0, 3.0)]
        with torch.no_grad():
            embedding.proj.weight.mul_(scale)
            return [student(z, t, cond, omega.cuda(), lambdas.cuda()) for omega, lambdas in guidance]

    stock = [*predictions(1.0), *predictions(0.5), *predictions(2.0)]
    speed_up(student.network, compile=compile, graphs=True, repeated=teacher.blocks)
    fast = [*predictions(1.0), *predictions(0.5), *predictions(2.0)]
    assert len(student.network.forward.recorded) == 1
    assert not torch.equal(stock[0], stock[1]) and not torch.equal(stock[0], stock[2])
    for one_fast, one_stock in zip(fast, stock, strict=True):
        torch.testing.assert_close(one_fast, one_stock, rtol=1e-3, atol=1e-4 * one_stock.abs().max().item())


@pytest.mark.gpu
@ONE_EACH
@pytest.mark.parametrize("choice", [[0, 3, 4], [[1, 4], [0, 2]]], ids=["alike", "each its own"])
def test_decoding_does_not_wait_for_the_gpu(tiny, family, name, choice):
    """Chosen frames are decoded without a copy for which the host waits, and the gradient is launched alike."""
    one = tiny(family, name)
    teacher = guidedcd.load_teacher(f"{family}:{one.folder}", device="cuda", size=one.size).teacher
    z = torch.randn(2, *teacher.geometry.latent_shape, device="cuda").requires_grad_()
    teacher.decode(z, choice).sum().backward()  # libraries are loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        teacher.decode(z, choice).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(z.grad).all()
