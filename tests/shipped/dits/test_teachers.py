"""Teachers with transformers against the pipelines of diffusers that wrote their folders, over several sizes."""

from __future__ import annotations

import copy
import types
from typing import Any

import pytest
import tiny_pipelines
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler

import guidedcd
from guidedcd.config import sections
from guidedcd.config.merge import choose
from guidedcd.diffusion.guidance import TeacherStep, guided_step
from guidedcd.diffusion.sampler import multistep_timesteps, sample_steps
from guidedcd.inference.pipeline import initial, with_options
from guidedcd.models.student import Student
from guidedcd.planning.skeletons import outline
from guidedcd.plugins.registry import load_plugins
from guidedcd.testing import teachers

ALL = [(family, name) for family, sizes in tiny_pipelines.SIZES.items() for name in sizes]
PROMPTS = ["a red ball moves left", "two boats in the rain"]
EVERY = pytest.mark.parametrize(
    ("family", "name"),
    [pytest.param(*one, marks=[] if one[1] == "small" else pytest.mark.slow, id="-".join(one)) for one in ALL],
)


def close(one: torch.Tensor, other: torch.Tensor, atol: float = 2e-6) -> None:
    """Equal but for the last bits of float32."""
    torch.testing.assert_close(one, other, rtol=1e-5, atol=atol)


def video(one: Any, count: int = 2, seed: int = 0) -> torch.Tensor:
    """Pixels (count, F, 3, H, W) in [0, 1]."""
    size = one.size
    shape = (count, size["frames"], 3, size["height"], size["width"])
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def recorded_times(network: Any, call: Any) -> list[torch.Tensor]:
    """What a network receives as time in the forward passes of `call`."""
    times: list[torch.Tensor] = []

    def record(module: Any, args: Any, kwargs: Any) -> None:
        times.append((kwargs["timestep"] if "timestep" in kwargs else args[1]).detach().clone())

    handle = network.register_forward_pre_hook(record, with_kwargs=True)
    try:
        call()
    finally:
        handle.remove()
    return times


@EVERY
def test_latents_and_pixels_equal_the_pipelines(tiny, family, name):
    """encode is the posterior's mode in the pipeline's scale, decode is the pipeline's, and chosen frames are right."""
    one = tiny(family, name)
    teacher, clip = one.teacher.teacher, video(one)
    z = teacher.encode(clip)
    assert z.shape == (2, *teacher.geometry.latent_shape)
    with torch.no_grad():
        own = one.pipeline.vae.encode(clip.transpose(1, 2) * 2 - 1).latent_dist.mode()
        expected, padding = tiny_pipelines.normalized(family, one.pipeline, own), teacher.geometry.latent_padding
        close(z[:, :, padding:], expected)
        close(z[:, :, :padding], expected[:, :, :1].expand(-1, -1, padding, -1, -1))
        pixels = tiny_pipelines.decoded(family, one.pipeline, expected)
        assert pixels.shape == clip.shape
        close(teacher.decode(z), pixels)
        close(teacher.decode(z, [0, 3]), pixels[:, [0, 3]])
        close(teacher.decode(z, torch.tensor([[1], [4]])), torch.stack([pixels[0, [1]], pixels[1, [4]]]))


@EVERY
def test_latents_in_bfloat16_are_those_of_the_pipelines(tiny, family, name):
    """Pixels are rounded to bfloat16 after they are scaled to [-1, 1], as the pipelines do."""
    one = tiny(family, name)
    teacher = guidedcd.load_teacher(f"{family}:{one.folder}", device="cpu", size=one.size, dtype="bfloat16").teacher
    vae, clip = copy.deepcopy(one.pipeline.vae).bfloat16(), video(one) * 0.1 + 0.45
    with torch.no_grad():
        own = vae.encode((clip.transpose(1, 2) * 2 - 1).bfloat16()).latent_dist.mode().float()
    close(teacher.encode(clip)[:, :, teacher.geometry.latent_padding :], teacher.normalized(own))


@EVERY
def test_embeddings_equal_the_pipelines(tiny, family, name):
    """Every tensor of embed and null is the pipeline's, padding and mask included."""
    one = tiny(family, name)
    teacher = one.teacher.teacher
    for captions, cond in ((PROMPTS, teacher.embed(PROMPTS)), (["", ""], teacher.null(2))):
        expected = tiny_pipelines.embedded(family, one.pipeline, captions, teacher)
        assert cond.keys() == expected.keys()
        for key, value in expected.items():
            close(cond[key].float(), value.float())


@EVERY
@pytest.mark.parametrize("steps", [3, 4])
def test_sampling_equals_the_pipeline(tiny, family, name, steps):
    """From the same noise, sample gives the pipeline's videos, and the network receives the pipeline's times."""
    one = tiny(family, name)
    teacher = one.teacher.teacher
    latents = initial(teacher, [3, 5])
    ours: list[torch.Tensor] = []
    theirs: list[torch.Tensor] = []
    times = recorded_times(
        teacher.network, lambda: ours.append(one.teacher.sample(PROMPTS, steps=steps, omega=4.0, latents=latents))
    )
    packed = tiny_pipelines.packed(family, one.pipeline, latents)
    expected = recorded_times(
        one.pipeline.transformer,
        lambda: theirs.append(
            one.call(PROMPTS, num_inference_steps=steps, guidance_scale=5.0, latents=packed, **seeds(family))
        ),
    )
    close(ours[0], theirs[0], atol=2e-5)
    assert ours[0].std() > 0.01
    per_step = len(expected) // len(times)  # our two predictions are one pass
    for own, theirs_own in zip(times, expected[::per_step], strict=True):
        torch.testing.assert_close(own[: len(theirs_own)].double(), theirs_own[: len(own)].double(), rtol=0, atol=1e-3)


def seeds(family: str) -> dict[str, Any]:
    """The generators of the pipeline that draw what `sample` draws for its default seeds 0 and 1."""
    return {"generator": [torch.Generator().manual_seed(seed) for seed in (0, 1)]}


@EVERY
def test_a_solver_step_equals_the_schedulers(tiny, family, name):
    """A step between grid points equals a step of the folder's scheduler, or for flow models of Euler's, to 1e-6."""
    one = tiny(family, name)
    teacher, schedule = one.teacher.teacher, one.teacher.teacher.schedule
    z, output = (
        torch.randn(2, *teacher.geometry.latent_shape, generator=torch.Generator().manual_seed(n)) for n in (1, 2)
    )
    grid = schedule.grid(10)
    for index in (9, 5, 1):
        t = grid[index].expand(2)
        t_next = schedule.previous(t, 10)
        step = TeacherStep(z, t, output, output, torch.zeros(2))
        expected = tiny_pipelines.scheduler_step(one.pipeline, schedule, t[0], t_next[0], output, z)
        close(guided_step(schedule, step, t_next), expected, atol=1e-6)


@EVERY
def test_the_shift_is_applied_once(tiny, family, name):
    """Of flow models, the time of a timestep is 1000 sigma with the shift in it once, and timestep 0 is clean."""
    one = tiny(family, name)
    schedule, scheduler = one.teacher.teacher.schedule, one.pipeline.scheduler
    if schedule.prediction != "flow":
        t = torch.arange(1000)
        assert torch.equal(schedule.network_time(t), t)
        return
    shift = tiny_pipelines.shift(family, one.pipeline, one.teacher.teacher)
    top = schedule.sigma[-250]
    u = 0.751 if isinstance(scheduler, FlowMatchEulerDiscreteScheduler) else 1 - 0.999 * 249 / 1000
    expected = shift * u / (1 + (shift - 1) * u)
    if terminal := scheduler.config.get("shift_terminal"):
        last = shift * 0.001 / (1 + (shift - 1) * 0.001)
        expected = 1 - (1 - expected) * (1 - terminal) / (1 - last)
    # UniPC's sigmas between the ends differ by one part in 2,000 between versions of diffusers.
    torch.testing.assert_close(top, torch.tensor(expected), rtol=1e-3, atol=0)
    assert schedule.sigma[0] == 0 and schedule.network_time(torch.tensor([0])) == 0
    times = schedule.network_time(torch.arange(1000))
    assert ((times - 1000 * schedule.sigma).abs() < 1).all()


@EVERY
def test_a_student_starts_as_its_teacher(tiny, family, name, tmp_path):
    """A fresh student of either kind equals its teacher bit for bit, also when it was saved and loaded."""
    one = tiny(family, name)
    teacher = one.teacher.teacher
    z = torch.randn(2, *teacher.geometry.latent_shape, generator=torch.Generator().manual_seed(1))
    t, cond = torch.tensor([999, 980]), teacher.embed(PROMPTS)
    with torch.no_grad():
        expected = teacher.net(z, t, cond)
    omega, lambdas = torch.tensor([1.0, 7.0]), torch.tensor([[0.1], [0.3]])
    for kind in ("full", "lora"):
        student = Student(teacher, sections.Student(kind=kind, rank=2), ("energy",)).eval()
        with torch.no_grad():
            assert torch.equal(student(z, t, cond, omega, lambdas), expected)
            student.network.get_submodule(teacher.time_embedding).guidance_embedding.proj.weight.normal_()
            changed = student(z, t, cond, omega, lambdas)
            assert not torch.equal(changed, expected)
            assert torch.equal(student(z, t, cond), expected)
            student.save(tmp_path / kind)
            assert torch.equal(Student.load(tmp_path / kind, teacher)(z, t, cond, omega, lambdas), changed)


@EVERY
def test_four_steps_of_a_student_equal_the_lcm_scheduler(tiny, family, name):
    """A student's samples in 4 steps are those of `FlowMatchLCMScheduler` with the same sigmas and noise."""
    one = tiny(family, name)
    teacher, schedule = one.teacher.teacher, one.teacher.teacher.schedule
    if schedule.prediction != "flow":
        pytest.skip("FlowMatchLCMScheduler is of flow models")
    student = Student(teacher).eval()
    cond, latents = teacher.embed(PROMPTS), initial(teacher, [3, 5])
    noises = [torch.randn(latents.shape, generator=torch.Generator().manual_seed(step)) for step in range(4)]
    steps = list(sample_steps(student, teacher, cond, latents, 4, 4.0, noises=noises))
    timesteps = torch.tensor(multistep_timesteps(4))
    scheduler = FlowMatchLCMScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=schedule.sigma[timesteps].tolist())
    z = latents
    for number, t in enumerate(scheduler.timesteps):
        with torch.no_grad():
            output = student(z, timesteps[number].expand(2), cond, torch.full((2,), 4.0))
        z = scheduler.step(output, t, z, generator=torch.Generator().manual_seed(number), return_dict=False)[0]
    close(steps[-1].denoised, z, atol=2e-5)


@EVERY
def test_teachers_of_transformers_conform(tiny, family, name):
    """Every conformance rule of teachers holds."""
    teacher = tiny(family, name).teacher.teacher
    for rule in teachers.RULES:
        rule(types.SimpleNamespace(built=teacher))


@EVERY
def test_the_outline_has_the_shapes(tiny, family, name):
    """Without weights, the teacher has the same shapes on the meta device, as a plan needs it."""
    one = tiny(family, name)
    chosen = with_options(choose("teacher", f"{family}:{one.folder}", {}, "teacher", load_plugins()), one.size)
    meta, teacher = outline(chosen), one.teacher.teacher
    assert meta.geometry == teacher.geometry and meta.network.device.type == "meta"
    shapes = {key: value.shape for key, value in teacher.network.state_dict().items()}
    assert shapes == {key: value.shape for key, value in meta.network.state_dict().items()}
    z = torch.empty(2, *teacher.geometry.latent_shape, device="meta")
    cond = meta.embed(["a", "b"])
    assert {key: value.shape for key, value in cond.items()} == {
        k: v.shape for k, v in teacher.embed(["a", "b"]).items()
    }
    assert meta.net(z, torch.zeros(2, dtype=torch.long, device="meta"), cond).shape == z.shape
    assert meta.decode(z).shape == (2, *teacher.geometry.pixel_shape)
    pixels = torch.empty(2, *teacher.geometry.pixel_shape, device="meta")
    assert meta.encode(pixels).shape == z.shape


def test_every_solver_begins_at_pure_noise(tiny):
    """With a schedule that ends in pure noise, all solvers sample finite videos, which are alike at many steps."""
    one = tiny("cogvideox", "small")
    videos = [one.teacher.sample(PROMPTS[:1], steps=20, omega=1.0, solver=name) for name in ("own", "ddim", "dpm++")]
    assert all(video.isfinite().all() for video in videos)
    for other in videos[1:]:
        assert (other - videos[0]).abs().mean() < 0.02


def test_seeds_determine_videos_of_stochastic_schedulers(tmp_path):
    """With stochastic_sampling, a step is diffusers' with the noise of the seeds: a video depends on its seed alone."""
    tiny_pipelines.ltx(tmp_path / "ltx", scheduler=lambda: tiny_pipelines.euler(2.0, stochastic_sampling=True))
    size = {"frames": 5, "height": 32, "width": 32}
    teacher = guidedcd.load_teacher(f"ltx:{tmp_path / 'ltx'}", device="cpu", size=size)
    video = teacher.sample(PROMPTS, steps=3, omega=0.0)
    torch.testing.assert_close(teacher.sample(PROMPTS, steps=3, omega=0.0), video)
    close(teacher.sample(PROMPTS[1], steps=3, omega=0.0, seeds=1), video[1:], atol=2e-5)
    sampler = teacher.teacher.sampler(3)
    z, output = torch.randn(1, 8, 2, 2, 2), torch.randn(1, 8, 2, 2, 2)
    own = sampler.step(0, output, z, [torch.Generator().manual_seed(4)])
    torch.manual_seed(4)
    close(own, sampler.scheduler.step(output, sampler.times[0], z, return_dict=False)[0])


def test_first_times_that_are_equal_are_two_steps(tmp_path):
    """Where rounding makes the first times equal, the solver `own` starts at the first step, as the pipeline does."""
    pipeline = tiny_pipelines.wan(tmp_path / "wan", scheduler=lambda: tiny_pipelines.unipc(12.0))
    size = {"frames": 1, "height": 16, "width": 16}
    loaded = guidedcd.load_teacher(f"wan:{tmp_path / 'wan'}", device="cpu", size=size)
    teacher = loaded.teacher
    times = teacher.sampler(100).times
    assert times[0] == times[1]
    latents = initial(teacher, [3])
    videos = loaded.sample(PROMPTS[:1], steps=100, omega=4.0, latents=latents)
    options = {"num_inference_steps": 100, "guidance_scale": 5.0, "output_type": "pt", "latents": latents.clone()}
    options |= tiny_pipelines.CALL["wan"](teacher)
    expected = pipeline(PROMPTS[:1], num_frames=1, height=16, width=16, **options).frames
    torch.testing.assert_close(videos, expected, rtol=0, atol=1e-4)
