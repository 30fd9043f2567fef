"""The objectives of a step: each is a loss of its own, and a run trains on any subset of them."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from toy_plugin import make

from guidedcd.diffusion.randomness import reward_generator
from guidedcd.errors import GuidedCDError
from guidedcd.models.student import Student
from guidedcd.preprocessing.preprocess import preprocess
from guidedcd.preprocessing.store import LatentStore
from guidedcd.rewards.scorer import RewardScorer
from guidedcd.training.batches import Batches
from guidedcd.training.losses import consistency
from guidedcd.training.objectives import BatchStep, Rewards, clip_predictions, objectives, total_loss


@pytest.fixture
def step(toy, tmp_path):
    """The first batch of a run with an energy, a reward and a guided-prediction loss."""
    run = make(train={"guided_steps": 4})
    store = LatentStore(preprocess(run, store_folder=tmp_path / "s"))
    teacher = run.teacher.build()
    scorer = RewardScorer({name: (module, run.rewards[name]) for name, module in run.build("reward").items()}, teacher)
    batches = Batches(
        store,
        readers=scorer.readers,
        rules=[],
        energies=run.energies,
        size=2,
        omega=run.solver.omega,
        seed=run.seed,
    )
    student = Student(teacher, energies=("toy",))
    grid = teacher.schedule.grid(run.solver.steps)
    options = {"run": run, "batch": batches(1), "number": 1, "schedule": teacher.schedule, "grid": grid}
    options |= {"accelerator": Accelerator(cpu=True), "advice": ""}
    return lambda: (BatchStep(model=student, **options), scorer)


def test_the_total_is_the_sum_in_order(step):
    """Consistency, three quarters of the guided prediction, minus the weighted mean reward: to the last bit."""
    now, scorer = step()
    total, metrics = total_loss(objectives(now.run, None, scorer, None), now)
    run, routes = now.run, list(now.batch.routes)
    loss, predicted = consistency(
        now.model,
        now.schedule,
        now.batch,
        grid=now.grid,
        solver=run.solver,
        energies=run.energies,
        guided=0.75,
        loss=run.train.loss,
        huber_c=run.train.huber_c,
    )
    rewards = scorer(predicted, routes, reward_generator(run.seed, 1))["toy"]

    assert torch.equal(metrics["cd_loss"], loss.detach())
    assert torch.equal(metrics["reward/toy"], rewards.detach().mean())
    assert torch.equal(total, loss - run.rewards["toy"].weight * rewards.sum() * 1 / torch.tensor(float(len(rewards))))
    shares = [f"share_noise-{level}/toy" for level in (1, 2, 3, 4)]
    levels = [f"cd_loss/noise-{level}" for level in (1, 2, 3, 4)]
    assert list(metrics) == ["loss", "cd_loss", *levels, "share/toy", *shares, "routed/toy", "reward/toy"]
    guided = now.batch.strengths[:, 0] > 0
    assert guided.any() and float(metrics["share/toy"]) == pytest.approx(0.3, rel=1e-4)


def test_the_loss_is_the_mean_of_its_quarters(step):
    """The consistency loss is the mean of its quarters of the grid, weighted by samples; empty quarters are NaN."""
    now, _ = step()
    loss = now.noisy.consistency_loss().detach()

    quarters = now.batch.index * 4 // now.run.solver.steps
    counts = torch.stack([(quarters == level).sum() for level in range(4)])
    levels = torch.stack(now.noisy.by_noise)
    assert torch.equal(levels.isnan(), counts == 0) and (counts > 0).any()
    torch.testing.assert_close((levels.nan_to_num() * counts).sum() / counts.sum(), loss)


def test_rewards_alone_are_a_run(step):
    """Without the distillation losses a step makes one forward pass, and its gradient is the reward's."""
    now, scorer = step()
    calls = []
    student = now.model

    def counting(*args):
        calls.append(torch.is_grad_enabled())
        return student(*args)

    now.model = counting
    total, metrics = total_loss([Rewards(scorer=scorer, sources=[clip_predictions])], now)
    total.backward()

    assert calls == [True] and "cd_loss" not in metrics
    torch.testing.assert_close(total.detach(), -now.run.rewards["toy"].weight * metrics["reward/toy"])
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in student.trainable)


def test_the_guided_prediction_ends_after_its_steps(step):
    """From `guided_steps` on the objective adds nothing."""
    now, scorer = step()
    now.number = 4
    guided = objectives(now.run, None, scorer, None)[1]

    assert guided(now.model, now.batch, now) == ([], {})


def test_the_consistency_loss_has_a_weight(step):
    """A weight scales the loss and its gradient, not the logged number; with 0 only the other objectives remain."""
    now, scorer = step()
    losses = {}
    for weight in (1.0, 0.5, 0.0):
        run = make(train={"consistency_weight": weight})
        objective = objectives(run, None, scorer, None)[0]
        (losses[weight],), metrics = objective(now.model, now.batch, now)
        assert torch.equal(metrics["cd_loss"], losses[1.0].detach())

    assert torch.equal(losses[0.5], 0.5 * losses[1.0]) and losses[0.0] == 0


def test_a_run_without_any_objective_is_refused(toy):
    """Without rewards and guided steps, a weight of 0 is one sentence."""
    with pytest.raises(GuidedCDError, match="nothing trains the student"):
        make(replace=("rewards",), rewards={}, train={"consistency_weight": 0.0})
    with pytest.raises(GuidedCDError, match="no rewards with a weight"):
        make(rewards={"toy": {"weight": 0.0}}, train={"consistency_weight": 0.0})
