"""The loss of one step."""

from __future__ import annotations

import types

import pytest
import torch

from guidedcd.config.sections import Solver
from guidedcd.diffusion.consistency import distance
from guidedcd.diffusion.guidance import TeacherStep, guided_step, strength_from_relative
from guidedcd.diffusion.randomness import noise
from guidedcd.diffusion.schedule import NoiseSchedule, expand
from guidedcd.models.student import Student
from guidedcd.plugins.configs import EnergyConfig
from guidedcd.testing.tiny_teacher import tiny_teacher
from guidedcd.training.losses import consistency

SHAPE = (2, 4, 2, 3, 3)
SOLVER = Solver(steps=50)


def stub(z, t, cond, omega, lambdas, **_):
    """A network whose output depends on all of its inputs."""
    told = omega + (lambdas.sum(1) * 100 if lambdas is not None else 0)
    return 0.1 * z * expand(told.to(z.dtype), z) + expand(t.to(z.dtype) / 1000, z)


def batch(strengths: torch.Tensor | None = None) -> types.SimpleNamespace:
    """Two stored draws with one score per energy."""
    strengths = torch.zeros(2, 0) if strengths is None else strengths
    return types.SimpleNamespace(
        index=torch.tensor([30, 45]),
        z0=noise(0, 0, SHAPE),
        noise=noise(0, 1, SHAPE),
        cond={},
        cond_output=noise(0, 2, SHAPE).half(),
        uncond_output=noise(0, 3, SHAPE).half(),
        scores={"pta": noise(0, 4, SHAPE).half(), "jerk": noise(0, 5, SHAPE).half()},
        omega=torch.tensor([5.0, 9.0]),
        strengths=strengths,
    )


def loss_of(b: types.SimpleNamespace, energies: dict, student=stub, **options):
    """The loss on the 50-point grid."""
    schedule = NoiseSchedule.scaled_linear()
    return consistency(student, schedule, b, grid=schedule.grid(50), solver=SOLVER, energies=energies, **options)


def test_the_loss_is_the_distance_to_the_guided_step():
    """The batch is noised, stepped with its strengths and compared, as by hand."""
    schedule, b = NoiseSchedule.scaled_linear(), batch(torch.tensor([[500.0, 0.2], [0.0, 0.0]]))
    energies = {"pta": EnergyConfig(scale=500.0), "jerk": EnergyConfig(relative=0.2)}
    t = torch.tensor([619, 919])
    z = schedule.add_noise(b.z0, b.noise, t)
    step = (schedule, TeacherStep(z, t, b.cond_output.float(), b.uncond_output.float(), b.omega))
    pta, jerk = b.scores["pta"].float(), b.scores["jerk"].float()
    terms = [(pta, b.strengths[:, 0]), (jerk, strength_from_relative(*step, jerk, b.strengths[:, 1]))]
    z_next = guided_step(*step, t - 20, terms)
    lambdas = torch.tensor([[0.05, 0.2 / 6], [0.0, 0.0]])
    expected, f = distance(stub, schedule, z, t, z_next, t - 20, {}, b.omega, lambdas)
    actual, predicted = loss_of(b, energies)

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(predicted, f)


def test_huber_and_l2_follow_their_formulas():
    """Huber is mean(sqrt(d^2 + c^2) - c), l2 mean(d^2); both are zero for equal sides."""
    schedule, z = NoiseSchedule.scaled_linear(), noise(0, 0, SHAPE)
    t = torch.tensor([500, 800])

    def f(z, t):
        return schedule.consistency(z, stub(z, t, {}, torch.ones(2), None), t)

    z_next, t_next = noise(0, 1, SHAPE), t - 20
    d = f(z, t) - f(z_next, t_next)
    for loss, expected in (("huber", ((d**2 + 0.01**2).sqrt() - 0.01).mean()), ("l2", (d**2).mean())):
        actual, _ = distance(stub, schedule, z, t, z_next, t_next, {}, torch.ones(2), loss=loss, huber_c=0.01)
        torch.testing.assert_close(actual, expected)
        assert abs(distance(stub, schedule, z, t, z, t, {}, torch.ones(2), loss=loss)[0]) < 1e-9
    with pytest.raises(ValueError, match="huber"):
        distance(stub, schedule, z, t, z, t, {}, torch.ones(2), loss="l1")


def test_a_masked_score_does_not_matter():
    """Where the strength is 0 the stored score may hold anything."""
    b, other = batch(torch.tensor([[0.0], [500.0]])), batch(torch.tensor([[0.0], [500.0]]))
    other.scores["pta"][0] = float("inf")

    assert torch.equal(loss_of(b, {"pta": EnergyConfig()})[0], loss_of(other, {"pta": EnergyConfig()})[0])


def test_the_target_side_has_no_gradient():
    """Only f(z, t) is differentiated: the gradient equals that of a distance to a constant."""
    teacher = tiny_teacher(frames=2)
    student = Student(teacher)
    schedule, b = teacher.schedule, batch()
    b.z0, b.noise, b.cond_output, b.uncond_output = (noise(0, i, (2, 4, 2, 8, 6)) for i in range(4))
    b.cond = teacher.embed(["a", "b"])
    options = {"grid": schedule.grid(50), "solver": SOLVER, "energies": {}, "loss": "l2"}
    calls = []

    def recording(*args):
        calls.append(student(*args))
        return calls[-1]

    loss, predicted = consistency(recording, schedule, b, **options)
    loss.backward()
    assert calls[0].requires_grad and not calls[1].requires_grad
    assert predicted.requires_grad and predicted.shape == b.z0.shape

    grads = [p.grad.clone() for p in student.trainable]
    student.zero_grad()
    constant, _ = consistency(student, schedule, b, target=lambda *args: calls[1].detach(), **options)
    constant.backward()
    for one, two in zip(grads, student.trainable, strict=True):
        torch.testing.assert_close(one, two.grad)


def test_another_network_may_be_the_target():
    """With a target given, the second side is that network's."""
    schedule, z, t = NoiseSchedule.scaled_linear(), noise(0, 0, SHAPE), torch.tensor([500, 800])
    zero, _ = distance(stub, schedule, z, t, z, t, {}, torch.ones(2), target=stub)
    other, _ = distance(stub, schedule, z, t, z, t, {}, torch.ones(2), target=lambda *args: 0 * stub(*args))

    assert abs(zero) < 1e-9
    assert other > 0


@pytest.mark.parametrize("prediction", ["v", "flow"])
def test_other_prediction_types_go_the_same_way(prediction):
    """The loss is finite and differentiable for v and flow models without a special case."""
    schedule = NoiseSchedule.flow() if prediction == "flow" else NoiseSchedule.scaled_linear(prediction=prediction)
    b = batch(torch.tensor([[0.3], [0.3]]))
    energies = {"pta": EnergyConfig(relative=0.3)}
    loss, f = consistency(stub, schedule, b, grid=schedule.grid(50), solver=SOLVER, energies=energies)

    assert loss.isfinite() and loss > 0
    assert f.isfinite().all()


def test_the_guided_prediction_is_learnt_beside_the_step():
    """With a weight the loss gains that share of the distance to the guided prediction, whose only zero is itself."""
    schedule, b = NoiseSchedule.scaled_linear(), batch()
    z = schedule.add_noise(b.z0, b.noise, t := torch.tensor([619, 919]))
    output = b.cond_output.float() + expand(b.omega, z) * (b.cond_output.float() - b.uncond_output.float())
    goal = schedule.consistency(z, output, t)
    plain, f = loss_of(b, {}, loss="l2")
    half, _ = loss_of(b, {}, loss="l2", guided=0.5)
    guided = [loss_of(b, {}, student=lambda *_: output, guided=weight)[0] for weight in (0.0, 1.0)]

    torch.testing.assert_close(half, plain + 0.5 * (f - goal).square().mean())
    assert half > plain + 1 and max(guided) < 1e-6
