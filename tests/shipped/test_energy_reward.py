"""The reward `energy:NAME`, and rewards that read latents."""

from __future__ import annotations

import json

import attrs
import pytest
import torch
from guidedcd_adapters import EnergyRewardConfig, RewardEnergyConfig
from guidedcd_adapters.energy import RewardEnergy
from guidedcd_adapters.reward import EnergyReward
from hypothesis import given, settings
from hypothesis import strategies as st
from short_training import trained
from torch import nn

import guidedcd
from guidedcd import GuidedCDError, RewardConfig, inside
from guidedcd.config.resolve import resolve, run_from_dict
from guidedcd.config.run import Run
from guidedcd.config.selection import select
from guidedcd.config.sources import Layer, read_profile
from guidedcd.config.structure import Value
from guidedcd.data.routing import Route
from guidedcd.diffusion.randomness import noise
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.diffusion.seen import seen_of_prediction
from guidedcd.plugins.registry import Component, load_plugins
from guidedcd.rewards.contract import build_rewards, check_members, rehearse
from guidedcd.rewards.latents import StudentPredictions
from guidedcd.rewards.scorer import RewardScorer
from guidedcd.testing import checks_of
from guidedcd.trials.reward import try_reward

CAPTION = "a red circle moving left"


@pytest.fixture(scope="module")
def teacher():
    """The teacher of the proving ground."""
    return guidedcd.load_teacher("shapes").teacher


def source(
    teacher, names: list[set[str]], *, clips: bool = True, seed: int = 0, size: float = 0.1
) -> StudentPredictions:
    """Predictions of random latents for samples that are routed to the rewards `names`."""
    shape = (len(names), *teacher.geometry.latent_shape)
    latents, z, z0, outputs = (noise(seed, number, shape) for number in range(4))
    return StudentPredictions(
        latents=(size * latents).requires_grad_(),
        routes=[Route(caption=CAPTION, rewards=frozenset(some)) for some in names],
        z=z,
        t=torch.full((len(names),), 200),
        clips=z0 if clips else None,
        outputs=outputs if clips else None,
    )


def scored(teacher, reward: nn.Module, sources: list[StudentPredictions], weight: float = 1.0):
    """The scorer, and the scores of one reward."""
    scorer = RewardScorer({"one": (reward, RewardConfig(weight=weight))}, teacher)
    predicted = torch.cat([one.latents for one in sources])
    routes = [route for one in sources for route in one.routes]
    return scorer, scorer.score(predicted, routes, sources=sources, limit=1)


@pytest.mark.parametrize(("name", "size"), [("dynamics", 0.1), ("saturation", 4.0), ("x0-motion", 0.1)])
def test_the_gradient_of_an_energy_reward_is_that_of_the_energy(teacher, name, size):
    """The gradient of the loss is the weight times that of the mean energy at the student's clean latents."""
    one = source(teacher, [{"one"}, {"one"}], size=size)
    reward = EnergyReward(EnergyRewardConfig(energy=name))
    scorer, scores = scored(teacher, reward, [one], weight=2.5)
    (gradient,) = torch.autograd.grad(-scorer.total(scores), one.latents)

    x = one.latents.detach().requires_grad_()
    alpha, sigma = teacher.schedule.alpha_sigma(one.t)
    seen = seen_of_prediction(teacher.schedule, one.z, one.t, x)
    reference = attrs.evolve(seen, output=one.outputs, prediction="v", guided_output=one.outputs)
    energy = reward.energy(seen, reference)
    (expected,) = torch.autograd.grad(2.5 * energy.mean(), x)
    assert expected.abs().max() > 0
    torch.testing.assert_close(scores["one"].scores, -energy)
    torch.testing.assert_close(gradient, expected)
    assert torch.equal(seen.alpha, alpha) and torch.equal(seen.sigma, sigma)

    moved = attrs.evolve(one, latents=one.latents.detach() - 1e-3 * gradient / gradient.norm() * x.detach().norm())
    assert (scored(teacher, reward, [moved])[1]["one"].scores > scores["one"].scores).all()


def test_videos_without_a_clip_are_left_out(teacher):
    """An energy with a reference scores clips alone; one without a reference scores the student's own videos, too."""
    sources = [source(teacher, [{"one"}, set()], clips=False), source(teacher, [set(), {"one"}, {"one"}], seed=1)]
    reward = EnergyReward(EnergyRewardConfig(energy="dynamics"))
    scorer, scores = scored(teacher, reward, sources)
    free, alone = scored(teacher, Small(), sources)

    assert (scores["one"].samples, len(scores["one"].scores)) == ((3, 4), 2)
    assert (alone["one"].samples, len(alone["one"].scores)) == ((0, 3, 4), 3)
    assert (scorer.scores_own_videos, free.scores_own_videos) == (False, True)
    expected = scored(teacher, reward, [sources[1]])[1]["one"].scores
    assert torch.equal(scores["one"].scores, expected)


class Small(nn.Module):
    """A reward of latents without a reference."""

    reads = "latents"
    max_tokens = 8

    def __init__(self, change=None):
        """Take what it does to the latents."""
        super().__init__()
        self.change = change

    def count_tokens(self, text: str) -> int:
        """The number of words."""
        return len(text.split())

    def forward(self, seen, captions, reference):
        """Minus the mean square (B,)."""
        if self.change is not None:
            return self.change(seen)
        return -seen.x0.square().flatten(1).mean(1)


def test_a_weight_of_0_needs_no_gradient(teacher):
    """Without a gradient the values are the same, and nothing is decoded for a reward of latents."""
    one = source(teacher, [{"one"}])
    reward = EnergyReward(EnergyRewardConfig(energy="saturation"))
    with torch.no_grad():
        frozen = scored(teacher, reward, [one])[1]["one"].scores
    logged = scored(teacher, reward, [one], weight=0.0)[1]["one"].scores

    assert not frozen.requires_grad and not logged.requires_grad
    torch.testing.assert_close(logged, scored(teacher, reward, [one])[1]["one"].scores.detach())
    with pytest.raises(ValueError, match="reads latents and needs the sources of 1 samples"):
        RewardScorer({"one": (reward, RewardConfig())}, teacher).score(one.latents, one.routes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda seen: seen.x0.mean(), r"returned a tensor of shape \[\] for 1 videos"),
        (lambda seen: seen.x0.flatten(1).mean(1) * torch.nan, "gave nan for random latents"),
        (lambda seen: seen.x0.detach().flatten(1).mean(1), "does not depend on its latents"),
        (lambda seen: seen.x0.mul_(2).flatten(1).mean(1), "changed its latents in place"),
        (lambda seen: seen.z.mul_(2).flatten(1).mean(1) + seen.x0.flatten(1).mean(1), "changed its latents in place"),
        (lambda seen: 1 / 0, "division by zero"),
    ],
)
def test_a_wrong_reward_of_latents_is_an_error_before_the_store(teacher, monkeypatch, change, words):
    """The rehearsal calls it on noise, in the middle of the schedule."""
    run = Run.from_profile("shapes", rewards=["energy:dynamics"], energies=[])
    rewards = {"energy:dynamics": Small(change)}
    with pytest.raises((GuidedCDError, ZeroDivisionError), match=words) as caught:
        rehearse(rewards, run, teacher.geometry, torch.device("cpu"), teacher)
    notes = " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert "reward 'energy:dynamics' of guidedcd/adapters" in notes


def test_members_of_a_reward_of_latents_are_checked():
    """`reads` and `reference` have a few values each."""
    reward = Small()
    reward.reads = "pixels"
    with pytest.raises(GuidedCDError, match="has `reads` 'pixels'; it must be 'frames' or 'latents'"):
        check_members(reward, "reward 'odd'")
    reward.reads, reward.reference = "latents", "inversion"
    with pytest.raises(GuidedCDError, match="has `reference` 'inversion'; it must be 'prediction', 'clean' or None"):
        check_members(reward, "reward 'odd'")


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["eps", "v", "flow"]), st.integers(1, 999), st.integers(0, 99))
def test_a_prediction_has_the_form_of_a_pass(kind, t, seed):
    """z = alpha x0 + sigma eps, and `x0` and `guided` are the prediction itself."""
    schedule = NoiseSchedule.flow(1000) if kind == "flow" else tiny_schedule(kind)
    z, x0 = noise(seed, 0, (2, 4, 3, 2, 2)), noise(seed, 1, (2, 4, 3, 2, 2))
    seen = seen_of_prediction(schedule, z, torch.full((2,), t), x0)
    alpha, sigma = (level.reshape(-1, 1, 1, 1, 1) for level in (seen.alpha, seen.sigma))

    assert seen.x0 is x0 and seen.guided is x0 and seen.timesteps == len(schedule)
    torch.testing.assert_close(alpha * seen.x0 + sigma * seen.eps, z, rtol=1e-4, atol=1e-4)


def tiny_schedule(kind: str) -> NoiseSchedule:
    """A linear schedule."""
    return NoiseSchedule.scaled_linear(prediction=kind)


def test_options_of_an_energy_reward_are_those_of_the_energy():
    """Options are those of the energy, and are recorded; energies that no reward can be made of name the way out."""
    rewards = {"energy:dynamics": {"weight": 0.5}}
    run = Run.from_profile("shapes", rewards=rewards, energies=[])
    recorded = json.loads(json.dumps(run.to_dict()))
    assert run_from_dict(recorded) == run
    assert inside(run.rewards["energy:dynamics"]).config.margin == 0.0
    assert list(build_rewards(run)) == ["energy:dynamics"]
    with pytest.raises(
        GuidedCDError, match="energy 'pta' of guidedcd/pta reads a forward pass .*energies.*pta.*, or choose"
    ):
        EnergyReward(EnergyRewardConfig(energy="pta"))
    with pytest.raises(GuidedCDError, match="no energy named 'dynamic'. Did you mean 'dynamics'"):
        Run.from_profile("shapes", rewards=["energy:dynamic"])
    options = {"reference": "inversion"}
    with pytest.raises(GuidedCDError, match=r"energies.dynamics.reference.*prediction"):
        EnergyReward(EnergyRewardConfig(energy="dynamics", inside=options))


def test_a_reward_of_latents_cannot_score_frames(teacher, tmp_path):
    """Where frames are scored, a reward that reads latents is refused in one sentence."""
    energy = RewardEnergy(RewardEnergyConfig(reward="energy:dynamics", part=(0.0, 1.0)))
    one = source(teacher, [set()])
    seen = seen_of_prediction(teacher.schedule, one.z, one.t, one.latents, [CAPTION], teacher.decode)
    with pytest.raises(GuidedCDError, match="reads the student's predicted latents, and no frames"):
        energy(seen, None)
    registry = load_plugins()
    selection = select([Layer.of_file({"rewards": "energy:dynamics"}, "file")], registry)
    with pytest.raises(GuidedCDError, match="reads the student's predicted latents, which a video file does not have"):
        try_reward(selection, out=tmp_path / "out")


def test_the_conformance_kit_passes():
    """The reward passes every check of rewards, on latents in place of frames."""
    component = Component(
        "reward", "energy", "guidedcd_adapters.reward:EnergyReward", EnergyRewardConfig, "guidedcd/test"
    )
    for check in checks_of(component, config=EnergyRewardConfig(energy="x0-motion")):
        check()


@pytest.mark.slow
def test_training_raises_the_reward(tmp_path):
    """A run on the proving ground logs the reward, and its first steps make the energy lower."""
    described = {
        "energies": [],
        "rewards": {"energy:x0-motion": {"weight": 20.0}},
        "preprocess": {"videos": 2, "draws_per_video": 1},
        "train": {"steps": 8, "batch_size": 2, "log_every": 1, "rollouts": {"videos": 2}, "optimizer": {"lr": 1e-4}},
        "device": "cpu",
    }
    # A student begins as its teacher, whose prediction it therefore equals: `clean` latents are another reference.
    flags = Layer(
        options={"energies": [("x0-motion", {"reference": Value("clean", "--energies.x0-motion.reference")})]}
    )
    run = resolve([read_profile("shapes"), Layer.of_file(described, "file"), flags], load_plugins())
    lines = trained(run, tmp_path / "run", tmp_path / "store")

    assert inside(run.rewards["energy:x0-motion"]).config.reference == "clean"
    assert lines[0]["routed/energy:x0-motion"] == 1.0
    assert lines[-1]["reward/energy:x0-motion"] > lines[0]["reward/energy:x0-motion"]
