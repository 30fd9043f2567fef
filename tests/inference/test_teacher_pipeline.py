"""Teachers that sample with energies: the loop, references, captions, and what is recorded of each step."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from guidedcd.config.from_python import components
from guidedcd.data import media
from guidedcd.diffusion.guidance import Rule
from guidedcd.errors import GuidedCDError
from guidedcd.inference.guides import Guide
from guidedcd.inference.solvers import teacher_steps
from guidedcd.inference.teacher_pipeline import TeacherPipeline
from guidedcd.plugins.configs import EnergyConfig, OutputEnergyConfig
from guidedcd.testing.tiny_teacher import tiny_teacher
from guidedcd.trials.teacher import ADVICE

PROMPTS = ["a red circle", "a blue square"]


def distance(seen, reference):
    """Mean squared distance of the predicted clean latents from the reference's."""
    return (seen.x0 - reference.x0).square().flatten(1).mean(1)


class Still:
    """The motion of the predicted clean latents, compared with nothing."""

    reference_free = True

    def __call__(self, seen, reference):
        assert reference is None
        return seen.x0.diff(dim=2).square().flatten(1).mean(1)


@pytest.fixture(scope="module")
def pipeline():
    """A tiny teacher with three frames."""
    return TeacherPipeline(tiny_teacher(frames=3))


@pytest.fixture(scope="module")
def reference(pipeline):
    """A video of the tiny teacher's size."""
    generator = torch.Generator().manual_seed(5)
    return torch.rand((1, *pipeline.teacher.geometry.pixel_shape), generator=generator)


def ddim(teacher, steps):
    """diffusers' DDIM for the tiny teacher."""
    scheduler = DDIMScheduler(
        prediction_type={"eps": "epsilon", "v": "v_prediction"}[teacher.schedule.prediction],
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
    )
    scheduler.alphas_cumprod = teacher.schedule.alphas_cumprod
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(steps)
    return scheduler


def clean(z, output, abar, prediction):
    """Predicted clean latents."""
    if prediction == "eps":
        return (z - (1 - abar).sqrt() * output) / abar.sqrt()
    return abar.sqrt() * z - (1 - abar).sqrt() * output


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_guided_sampling_equals_a_loop_with_diffusers(prediction):
    """Equation 2 written out with diffusers' DDIMScheduler gives the same latents, to float32 rounding."""
    teacher, steps, omega, scale = tiny_teacher(frames=3, prediction=prediction), 4, 2.0, 300.0
    cond, null = teacher.embed(PROMPTS), teacher.null(2)
    generator = torch.Generator().manual_seed(0)
    start, target = (torch.randn((2, *teacher.geometry.latent_shape), generator=generator) for _ in range(2))
    scheduler = ddim(teacher, steps)
    z, energies = start, []
    for number, t in enumerate(scheduler.timesteps):
        abar = scheduler.alphas_cumprod[t]
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        z.requires_grad_(True)
        conditional = teacher.net(z, t[None], cond)
        energy = (clean(z, conditional, abar, prediction) - target).square().flatten(1).mean(1)
        (gradient,) = torch.autograd.grad(energy.sum(), z)
        z, conditional = z.detach(), conditional.detach()
        energies.append(energy.detach())
        output = conditional + omega * (conditional - teacher.net(z, t[None], null))
        if number < steps // 2:  # the energy acts on the noisiest half
            eps = output if prediction == "eps" else alpha * output + sigma * z
            eps = eps + scale * sigma * gradient
            output = eps if prediction == "eps" else (eps - sigma * z) / alpha
        z = scheduler.step(output, t, z).prev_sample

    def to_target(seen, reference):
        return (seen.x0 - target).square().flatten(1).mean(1)

    to_target.reference_free = True
    guide = Guide(energy=to_target, config=EnergyConfig(scale=scale, fraction=0.5), name="mine")
    rule = Rule("eps", "sqrt-one-minus")
    actual = list(teacher_steps(teacher, cond, null, start.detach(), steps, omega, [guide], rule=rule, watch=True))
    plain = list(teacher_steps(teacher, cond, null, start.detach(), steps, omega))

    size = z.abs().max()
    assert (actual[-1].latents - z).abs().max() < 2e-5 * size
    assert (plain[-1].latents - z).abs().max() > 1e-2 * size  # the energy matters
    torch.testing.assert_close(torch.stack([step.energies["mine"] for step in actual]), torch.stack(energies))
    assert [sorted(step.shares) for step in actual] == [["mine"], ["mine"], [], []]


def test_energies_receive_captions(pipeline, reference):
    """An energy receives the prompt of each sample, and the caption of each reference."""
    captions = []

    def reads(seen, reference):
        captions.append((seen.captions, reference.captions))
        return distance(seen, reference)

    energies = {"reads": (reads, {"fraction": 1.0, "reference": "clean"})}
    pipeline.sample(PROMPTS, energies, reference, steps=1, reference_prompts="a ring")
    pipeline.sample(PROMPTS[0], energies, reference, steps=1)

    assert captions == [(tuple(PROMPTS), ("a ring", "a ring")), ((PROMPTS[0],), (PROMPTS[0],))]


def test_several_energies_act_together(pipeline, reference):
    """Each energy has its own strength, fraction and reference; shares are the relative strengths, else 0."""
    energies = {
        "near": (distance, {"relative": 0.3, "fraction": 1.0, "reference": "clean"}),
        "still": (Still(), {"relative": 0.1, "fraction": 0.5}),
    }
    result = pipeline.sample_guided(PROMPTS, energies, reference, steps=4, omega=1.0)

    assert result.videos.shape == (2, *pipeline.teacher.geometry.pixel_shape)
    assert result.timesteps == [999, 749, 499, 249]
    assert {name: tuple(value.shape) for name, value in result.energies.items()} == {"near": (4, 2), "still": (4, 2)}
    torch.testing.assert_close(result.shares["near"], torch.full((4, 2), 0.3))
    torch.testing.assert_close(result.shares["still"], torch.tensor([[0.1] * 2, [0.1] * 2, [0.0] * 2, [0.0] * 2]))
    assert result.energies["still"].isnan().tolist() == [[False] * 2, [False] * 2, [True] * 2, [True] * 2]


def test_watching_changes_no_video(pipeline, reference):
    """Without guidance, watched energies are known at every step, and the videos are those of the teacher alone."""
    energies = {"near": (distance, {"relative": 0.3}), "still": Still()}
    watched = pipeline.sample_guided(PROMPTS, energies, reference, steps=2, watch=True, guided=False)

    assert torch.equal(watched.videos, pipeline.sample(PROMPTS, steps=2))
    assert all(values.isfinite().all() for values in watched.energies.values())
    assert not any(shares.any() for shares in watched.shares.values())


def test_a_guided_video_does_not_depend_on_its_batch(pipeline, reference):
    """One video a batch gives the same videos and energies as all at once."""
    energies = {"near": (distance, {"relative": 0.3, "reference": "single-step"})}
    together, alone = (pipeline.sample_guided(PROMPTS, energies, reference, steps=2, batch=b) for b in (2, 1))

    torch.testing.assert_close(together.videos, alone.videos, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.energies["near"], alone.energies["near"], equal_nan=True)


def test_an_energy_with_keep_receives_what_it_kept(pipeline, reference):
    """As in training, the second argument is what `keep` returned of the reference."""

    class Keeping:
        config = EnergyConfig(reference="clean", fraction=1.0)

        def keep(self, reference):
            return reference.x0.mean(dim=(1, 2, 3, 4))

        def __call__(self, seen, reference):
            assert reference.shape == (1,)
            return (seen.x0.mean(dim=(1, 2, 3, 4)) - reference).square()

    assert pipeline.sample(PROMPTS[0], {"keeping": Keeping()}, reference, steps=1).isfinite().all()


def test_a_function_alone_is_an_energy(pipeline, reference):
    """A function, or a list with functions, is called by its own name."""
    result = pipeline.sample_guided(PROMPTS[0], distance, reference, steps=1)

    assert list(result.energies) == ["distance"]
    assert [one.name for one in components("energies", [distance, "pta"], "here")] == ["distance", "pta"]


def test_a_reference_may_be_a_file(pipeline, reference, tmp_path):
    """A written video is reduced to the teacher's size, and its prompt is the reference's caption."""
    captions = []

    def reads(seen, reference):
        captions.append(reference.captions)
        return distance(seen, reference)

    path = tmp_path / "clip.mp4"
    media.write_video(path, reference[0], fps=8, enlarge=4, quality=1, metadata={"prompt": "a ring"})
    energies = {"reads": (reads, {"fraction": 1.0, "reference": "clean", "relative": 0.3})}
    by_file, by_pixels = (pipeline.sample(PROMPTS[0], energies, one, steps=1) for one in (path, reference))

    assert captions[0] == ("a ring",)
    torch.testing.assert_close(by_file, by_pixels, atol=0.1, rtol=0)


def test_one_reference_of_all_is_encoded_once(pipeline, reference, monkeypatch):
    """The encoder receives a single video for two prompts, with the results of one reference for each."""
    sizes, encode = [], pipeline.teacher.encode
    monkeypatch.setattr(pipeline.teacher, "encode", lambda video: sizes.append(len(video)) or encode(video))
    energies = {"near": (distance, {"relative": 0.3, "fraction": 1.0, "reference": "clean"})}
    one, two = (pipeline.sample(PROMPTS, energies, reference.repeat(n, 1, 1, 1, 1), steps=1) for n in (1, 2))

    assert sizes == [1, 2]
    torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_full_memory_has_the_advice_of_the_caller(pipeline, monkeypatch):
    """By default a smaller batch; a command without that flag gives its own advice."""

    def full(latents):
        raise MemoryError

    monkeypatch.setattr(pipeline.teacher, "decode", full)
    with pytest.raises(GuidedCDError, match="`batch="):
        pipeline.sample(PROMPTS, steps=1)
    with pytest.raises(GuidedCDError, match=r"Use fewer `videos` or"):
        pipeline.sample(PROMPTS, steps=1, advice=ADVICE)


def test_mistakes_are_sentences(pipeline, reference, tmp_path):
    """A missing reference, one of another size, too short a file and a wrong number of captions."""
    wrong = {"near": (distance, {"reference": "clean"})}
    short = media.write_video(tmp_path / "short.mp4", reference[0, :2], fps=8)
    cases = [
        (r"energy 'near' needs a reference: a video file, or \(1 or B", {}),
        (r"must be \(1 or B, 3, 3, 16, 12\), not \(1, 3, 3, 8, 12\)", {"reference": reference[..., :8, :]}),
        (r"short\.mp4 has 2 frames, but a video of this teacher has 3", {"reference": short}),
        (r"missing\.mp4 is missing", {"reference": tmp_path / "missing.mp4"}),
        ("3 references, but 2 prompts", {"reference": reference.repeat(3, 1, 1, 1, 1)}),
        ("3 reference prompts, but 2 prompts", {"reference": reference, "reference_prompts": ["a", "b", "c"]}),
    ]
    for match, options in cases:
        with pytest.raises(GuidedCDError, match=match):
            pipeline.sample(PROMPTS, wrong, steps=1, **options)


def moving(seen, reference):
    """The difference between the guided prediction's motion and the reference's."""
    return (seen.guided.diff(dim=2).abs() - reference.guided.diff(dim=2).abs()).square().flatten(1).mean(1)


moving.through, moving.config = "output", OutputEnergyConfig(relative=0.3)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_an_energy_of_the_output_takes_no_pass_with_a_gradient(prediction, monkeypatch):
    """Sampling equals a loop with diffusers' scheduler, one call of twice the batch a step and nothing else."""
    teacher, steps, omega, scale = tiny_teacher(frames=3, prediction=prediction), 4, 2.0, 100.0
    cond, null, calls = teacher.embed(PROMPTS), teacher.null(2), []
    net = teacher.net
    monkeypatch.setattr(teacher, "net", lambda z, *rest: (calls.append((len(z), z.requires_grad)), net(z, *rest))[1])
    start = torch.randn((2, *teacher.geometry.latent_shape), generator=torch.Generator().manual_seed(0))
    guide = Guide(energy=moving, config=OutputEnergyConfig(scale=scale, fraction=1.0))
    rule = Rule("eps", "sqrt-one-minus")
    last = [*teacher_steps(teacher, cond, null, start, steps, omega, [guide], rule=rule)][-1].latents
    assert calls == [(4, False)] * steps
    plain = [*teacher_steps(teacher, cond, null, start, steps, omega)][-1].latents

    scheduler, z = ddim(teacher, steps), start
    for t in scheduler.timesteps:
        abar = scheduler.alphas_cumprod[t]
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        conditional, unconditional = net(z, t[None], cond).detach(), net(z, t[None], null).detach()
        output = conditional + omega * (conditional - unconditional)
        z.requires_grad_(True)
        own = clean(z, conditional, abar, prediction).detach().diff(dim=2).abs()
        motion = clean(z, output, abar, prediction).diff(dim=2).abs()
        (gradient,) = torch.autograd.grad((motion - own).square().flatten(1).mean(1).sum(), z)
        z = z.detach()
        eps = output if prediction == "eps" else alpha * output + sigma * z
        eps = eps + scale * sigma * gradient
        z = scheduler.step(eps if prediction == "eps" else (eps - sigma * z) / alpha, t, z).prev_sample
    size = z.abs().max()
    assert (last - z).abs().max() < 1e-4 * size
    assert (plain - z).abs().max() > 1e-2 * size  # the energy matters


def test_energies_of_both_kinds_guide_together(pipeline, reference):
    """Each guides with its own share; one of the output also compares with the video if there is one."""
    both = {"far": (distance, {"relative": 0.2, "fraction": 1.0}), "moving": (moving, {"fraction": 0.5})}
    guided = pipeline.sample_guided(PROMPTS, both, reference, steps=4, watch=True)
    alone = pipeline.sample_guided(PROMPTS, {"moving": moving}, steps=4, watch=True)
    video = pipeline.sample_guided(PROMPTS, {"moving": moving}, reference, steps=4)
    clean = pipeline.sample_guided(PROMPTS, {"moving": (moving, {"reference": "clean"})}, reference, steps=4)

    torch.testing.assert_close(guided.shares["far"], torch.full((4, 2), 0.2), rtol=1e-3, atol=0)
    torch.testing.assert_close(guided.shares["moving"][:2], torch.full((2, 2), 0.1), rtol=1e-3, atol=0)
    assert (guided.shares["moving"][2:] == 0).all() and guided.energies["moving"].isfinite().all()
    assert not torch.equal(alone.videos, video.videos) and not torch.equal(video.videos, clean.videos)


def test_an_energy_of_the_output_needs_a_video_for_other_references(pipeline):
    """Clean latents and inversions are those of a video."""
    with pytest.raises(GuidedCDError, match="energy 'moving' needs a reference"):
        pipeline.sample(PROMPTS, {"moving": (moving, {"reference": "clean"})}, steps=2)
