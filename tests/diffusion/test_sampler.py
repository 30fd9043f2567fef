"""Sampling with students and teachers."""

from __future__ import annotations

import types

import pytest
import torch
from diffusers import DDIMScheduler
from guidedcd_pta import PTAConfig
from guidedcd_pta.energy import PTA

from guidedcd.diffusion.randomness import noise
from guidedcd.diffusion.sampler import lambda_applies, sample, sample_steps
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.errors import GuidedCDError
from guidedcd.inference.guides import Guide
from guidedcd.inference.solvers import teacher_sample
from guidedcd.models.student import Student
from guidedcd.plugins.configs import EnergyConfig
from guidedcd.testing.tiny_teacher import tiny_teacher


@pytest.fixture(scope="module")
def teacher():
    """One tiny teacher for all tests."""
    return tiny_teacher(frames=3)


@pytest.fixture(scope="module")
def latents(teacher):
    """Initial noise of two videos."""
    return noise(0, 0, (2, *teacher.geometry.latent_shape))


class Listener:
    """A student that records its inputs."""

    def __init__(self, energies: tuple[str, ...] = ()) -> None:
        self.energies, self.told = energies, []

    def __call__(self, z, t, cond, omega, lambdas):
        self.told.append((int(t[0]), omega.tolist(), None if lambdas is None else lambdas.tolist()))
        return 0.5 * z


@pytest.mark.parametrize(
    ("steps", "fraction", "kept"), [(4, 0.5, 2), (8, 0.5, 4), (16, 0.5, 9), (16, 0.3, 5), (4, 0.0, 0)]
)
def test_lambda_is_an_input_at_early_timesteps_only(teacher, latents, steps, fraction, kept):
    """lambda is an input while t >= 1000 (1 - fraction), and 0 afterwards; omega is always an input."""
    student = Listener(("pta",))
    sample(student, teacher, {}, latents, steps, 7.5, [0.05], fraction)
    values = [lambdas[0][0] for _, _, lambdas in student.told]

    assert [pytest.approx(0.05)] * kept + [0.0] * (steps - kept) == values
    assert all(omega == [7.5, 7.5] for _, omega, _ in student.told)


def test_each_energy_has_its_window_and_each_sample_its_strength(teacher, latents):
    """lambdas may be (B, E) and fractions one per energy; omega may be (B,)."""
    student = Listener(("a", "b"))
    sample(
        student, teacher, {}, latents, 2, torch.tensor([1.0, 2.0]), torch.tensor([[0.1, 0.2], [0.3, 0.4]]), [1.0, 0.3]
    )

    assert [t for t, _, _ in student.told] == [999, 499]
    assert student.told[0][1] == [1.0, 2.0]
    torch.testing.assert_close(torch.tensor(student.told[0][2]), torch.tensor([[0.1, 0.2], [0.3, 0.4]]))
    torch.testing.assert_close(torch.tensor(student.told[1][2]), torch.tensor([[0.1, 0.0], [0.3, 0.0]]))


def test_a_student_with_energies_receives_zeros_without_lambdas(teacher, latents):
    """Without lambdas a student with energies receives zeros; one without energies receives none."""
    with_energy, without = Listener(("pta",)), Listener()
    for student in (with_energy, without):
        sample(student, teacher, {}, latents, 2, 7.5)

    assert [lambdas for *_, lambdas in with_energy.told] == [[[0.0], [0.0]]] * 2
    assert [lambdas for *_, lambdas in without.told] == [None, None]


def test_one_step_draws_no_noise(teacher, latents):
    """A one-step sample is the consistency function of the initial noise at 999."""
    (step,) = sample_steps(Listener(), teacher, {}, latents, 1, 7.5, noises=[])
    at = torch.tensor([999, 999])

    assert step.t == 999
    assert torch.equal(step.denoised, teacher.schedule.consistency(latents, 0.5 * latents, at))
    assert torch.equal(step.z, step.denoised)


def test_noise_comes_from_a_generator_or_a_list(teacher, latents):
    """A generator makes sampling repeatable, a list of noises fixes it; the last noise does not matter."""
    student = Student(teacher).eval()
    cond = teacher.embed(["a", "b"])

    def run(noises):
        return sample(student, teacher, cond, latents, 2, 7.5, noises=noises)

    drawn = [torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))]
    assert torch.equal(run(torch.Generator().manual_seed(3)), run(torch.Generator().manual_seed(3)))
    assert torch.equal(run(torch.Generator().manual_seed(3)), run([*drawn, torch.zeros_like(latents)]))
    assert not torch.equal(run(torch.Generator().manual_seed(4)), run(torch.Generator().manual_seed(3)))


def test_lambda_applies_compares_like_the_released_code():
    """The threshold itself is inside: 499 >= 1000 (1 - 0.501)."""
    assert lambda_applies(499, 0.501)
    assert not lambda_applies(498, 0.501)
    assert lambda_applies(999, 0.001)


@pytest.mark.parametrize("steps", [4, 8])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_teacher_ddim_equals_diffusers(steps, prediction, latents):
    """The teacher's sampler is diffusers' DDIM (trailing, eta 0) with guidance_scale = omega + 1."""
    teacher = tiny_teacher(frames=3, prediction=prediction)
    abar = teacher.schedule.alphas_cumprod.double()
    reference = DDIMScheduler(
        trained_betas=(1 - abar / torch.cat([torch.ones(1), abar[:-1]])).tolist(),
        prediction_type={"eps": "epsilon", "v": "v_prediction"}[prediction],
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
    )
    reference.set_timesteps(steps)
    cond, null, z = teacher.embed(["red", "blue"]), teacher.null(2), latents
    for t in reference.timesteps:
        u, c = teacher.net(z, t[None], null), teacher.net(z, t[None], cond)
        z = reference.step(u + 4.0 * (c - u), t, z).prev_sample
    actual = teacher_sample(teacher, cond, null, latents, steps, 3.0)

    torch.testing.assert_close(actual, z, atol=2e-3, rtol=2e-3)


def test_both_solvers_agree_in_the_limit():
    """On an exactly solvable model both solvers converge to the same end, DPM-Solver++ faster."""
    schedule = NoiseSchedule.scaled_linear()
    spread = 0.5  # the data are N(0, 0.25): the exact eps is sigma z / (alpha^2 0.25 + sigma^2)

    def net(z, t, cond, **_):
        alpha, sigma = (v.view(-1, 1, 1, 1, 1) for v in schedule.alpha_sigma(t))
        return sigma * z / (alpha**2 * spread**2 + sigma**2)

    exact = types.SimpleNamespace(schedule=schedule, net=net)
    z = noise(0, 0, (1, 4, 2, 3, 3))
    end = teacher_sample(exact, {}, {}, z, 1000, 0.0)
    for steps, close in ((20, 0.15), (200, 0.01)):
        ddim, dpm = (teacher_sample(exact, {}, {}, z, steps, 0.0, solver) for solver in ("ddim", "dpm++"))
        assert (dpm - end).abs().max() < (ddim - end).abs().max()
        torch.testing.assert_close(dpm, end, atol=close, rtol=0)


def test_without_guidance_the_teacher_is_called_once_per_step(teacher, latents):
    """omega = 0 needs no unconditional pass."""
    calls = []
    counting = types.SimpleNamespace(
        schedule=teacher.schedule, net=lambda z, *rest: calls.append(len(z)) or teacher.net(z, *rest)
    )
    cond, null = teacher.embed(["a", "b"]), teacher.null(2)
    teacher_sample(counting, cond, null, latents, 2, 0.0)
    teacher_sample(counting, cond, null, latents, 2, 1.0)

    assert calls == [2, 2, 4, 4]


@pytest.mark.parametrize("reference", ["inversion", "single-step", "clean"])
def test_energies_steer_the_teacher(teacher, latents, reference):
    """PTA with any kind of reference changes the sample inside its window only, and scale 0 is the plain sampler."""
    z0 = noise(5, 0, latents.shape)
    cond, null = teacher.embed(["a", "b"]), teacher.null(2)

    def run(**options):
        config = PTAConfig(reference=reference, **options)
        guide = Guide(energy=PTA(config), config=config, z0=z0, cond=cond, noise=noise(5, 1, z0.shape))
        return teacher_sample(teacher, cond, null, latents, 4, 2.0, energies=[guide])

    plain = teacher_sample(teacher, cond, null, latents, 4, 2.0)
    torch.testing.assert_close(run(scale=0.0), plain, atol=2e-4, rtol=2e-3)
    assert torch.equal(run(fraction=0.0), plain)
    strong = run(relative=0.1)
    assert strong.isfinite().all()
    assert not torch.allclose(strong, plain, atol=1e-3)


def test_steering_lowers_the_energy(teacher, latents):
    """Over the guided steps the sampler's PTA energy to the reference falls below the plain sampler's."""
    z0 = noise(5, 0, latents.shape)
    cond, null = teacher.embed(["a", "b"]), teacher.null(2)
    config = PTAConfig(reference="single-step", relative=0.2, fraction=1.0)
    eps = noise(5, 1, z0.shape)

    def energy(**options):
        energies_of_steps = []

        class Watching(PTA):
            def __call__(self, seen, reference):
                value = super().__call__(seen, reference)
                energies_of_steps.append(float(value.detach().mean()))
                return value

        guided = PTAConfig(reference="single-step", fraction=1.0, **options)
        guide = Guide(energy=Watching(config), config=guided, z0=z0, cond=cond, noise=eps)
        teacher_sample(teacher, cond, null, latents, 10, 0.0, energies=[guide])
        return sum(energies_of_steps[2:])

    assert energy(relative=0.2) < energy(scale=0.0)


def test_mistakes_are_sentences(teacher, latents):
    """Unknown solvers, energies with dpm++ and a missing reference noise are errors of one sentence."""
    cond, null = teacher.null(2), teacher.null(2)
    config = EnergyConfig(reference="single-step")
    guide = Guide(energy=PTA(PTAConfig()), config=config, z0=latents, cond=cond)
    with pytest.raises(GuidedCDError, match=r"ddim or dpm\+\+"):
        teacher_sample(teacher, cond, null, latents, 4, 1.0, "euler")
    with pytest.raises(GuidedCDError, match="ddim solver only"):
        teacher_sample(teacher, cond, null, latents, 4, 1.0, "dpm++", [guide])
    with pytest.raises(GuidedCDError, match="noise of its own"):
        teacher_sample(teacher, cond, null, latents, 4, 1.0, energies=[guide])
    flow = types.SimpleNamespace(schedule=NoiseSchedule.flow())
    with pytest.raises(GuidedCDError, match="flow"):
        teacher_sample(flow, cond, null, latents, 4, 1.0, "dpm++")
