"""The energy `reward:NAME`."""

from __future__ import annotations

import json
import math

import pytest
import tiny_run
import torch
from guidedcd_adapters import RewardEnergyConfig
from guidedcd_adapters.energy import RewardEnergy
from guidedcd_clip import CLIPConfig
from short_training import trained

import guidedcd
from guidedcd import GuidedCDError, Prompt, inside
from guidedcd.cli import main
from guidedcd.config.from_python import components
from guidedcd.config.resolve import resolve, run_from_dict
from guidedcd.config.run import Run
from guidedcd.config.sources import Layer, read_profile
from guidedcd.config.structure import Value
from guidedcd.diffusion.guidance import TeacherStep, guided_step
from guidedcd.diffusion.randomness import noise
from guidedcd.energies.gradients import EnergyTerm
from guidedcd.energies.output import output_gradients, seen_of_step
from guidedcd.plugins.registry import Component, load_plugins
from guidedcd.rewards.scorer import even_indices
from guidedcd.testing import checks_of
from guidedcd.training.run_folder import claimed

PROMPT = "a red circle moving left"


def config(**options: object) -> RewardEnergyConfig:
    """The options of `reward:clip`."""
    return RewardEnergyConfig(reward="clip", **options)


@pytest.fixture(scope="module")
def teacher():
    """The teacher of the proving ground."""
    return guidedcd.load_teacher("shapes").teacher


def step_of(teacher, timesteps: list[int]) -> TeacherStep:
    """The start of a step with random latents and predictions."""
    shape = (len(timesteps), *teacher.geometry.latent_shape)
    z, o_c, o_u = (noise(0, number, shape) for number in range(3))
    return TeacherStep(z, torch.tensor(timesteps), o_c, o_u, torch.full((len(timesteps),), 2.0))


def test_the_reward_inside_has_the_options_of_its_kind():
    """Options of the profile and of --rewards.NAME reach the reward inside an energy, and are recorded in run.json."""
    run = Run.from_profile("shapes", energies={"reward:clip": {"relative": 0.2}}, rewards=[])
    recorded = json.loads(json.dumps(run.to_dict()))
    inner = inside(run.energies["reward:clip"])

    assert (inner.name, inner.config.weight, type(inner.config)) == ("clip", 1.2, CLIPConfig)
    assert recorded["energies"]["reward:clip"]["inside"]["path"] == "shapes"
    assert run_from_dict(recorded) == run
    two = Run.from_profile("shapes", energies=["reward:hps", "reward:clip"], rewards=[])
    assert [inside(one).name for one in two.energies.values()] == ["hps", "clip"]
    with pytest.raises(GuidedCDError, match="no reward named 'clop'. Did you mean 'clip'?"):
        Run.from_profile("shapes", energies=["reward:clop"])
    with pytest.raises(GuidedCDError, match="energy 'reward' needs its reward: write reward:VALUE."):
        Run.from_profile("shapes", energies=["reward"])


def test_flags_of_the_reward_inside_an_energy_select_no_reward():
    """A flag of the reward inside an energy selects no reward, and takes precedence over a recorded option."""
    registry = load_plugins()
    below = [read_profile("shapes"), Layer.of_file({"energies": "reward:clip"}, "file")]
    flags = [("clip", {"frames": Value("4", "--rewards.clip.frames")})]
    recorded = Layer.of_file(resolve(below, registry).to_dict(), "run.json")
    for layers in (below, [recorded]):
        run = resolve([*layers, Layer(options={"rewards": flags})], registry)
        assert (list(run.rewards), inside(run.energies["reward:clip"]).config.frames) == ([], 4)
    with pytest.raises(GuidedCDError, match="`rewards.hps.frames` is an option of reward 'hps', which is not"):
        other = [("hps", {"frames": Value("4", "--rewards.hps.frames")})]
        resolve([*below, Layer(options={"rewards": other})], registry)


def test_the_source_of_the_reward_inside_is_recorded(tmp_path):
    """A run that continues states that the code of the reward inside its energy has changed."""
    run = Run.from_profile("shapes", energies=["reward:clip"], rewards=[])
    with claimed(run, tmp_path / "run", new=False) as folder:
        sources = json.loads((folder / "sources.json").read_text())

    assert sources["reward 'clip' in energy 'reward:clip'"]["plugin"] == "guidedcd/clip"


def test_the_gradient_of_a_reward_energy_passes_the_decoder(teacher):
    """The score equals the derivative written out by hand, and a guided step along it raises the reward."""
    energy = RewardEnergy(config(part=(0.0, 1.0)))
    step = step_of(teacher, [300, 600])
    seen = seen_of_step(teacher.schedule, step, [PROMPT] * 2, teacher.decode)
    (score,) = output_gradients(seen, [EnergyTerm(name="reward:clip", energy=energy, reference=None)])

    reward, latents = energy.reward(torch.device("cpu")), seen.guided.detach().requires_grad_()
    rewards = reward(teacher.decode(latents, [2, 6]), [PROMPT] * 2)
    (slope,) = torch.autograd.grad(-rewards.sum(), latents)
    alpha, _ = teacher.schedule.alpha_sigma(step.t)  # dx0/dz of v
    torch.testing.assert_close(score, alpha.reshape(-1, 1, 1, 1, 1) * slope)
    torch.testing.assert_close(energy(seen, None), -rewards.detach())

    strength = 0.05 * step.z.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1)
    moved = seen_of_step(
        teacher.schedule, TeacherStep(step.z - strength.reshape(-1, 1, 1, 1, 1) * score, *step_rest(step))
    )
    raised = reward(teacher.decode(moved.guided, [2, 6]), [PROMPT] * 2)
    assert (raised > rewards).all()
    guided = guided_step(teacher.schedule, step, step.t - 20, [(score, strength)])
    assert not torch.equal(guided, guided_step(teacher.schedule, step, step.t - 20))


def test_frames_are_those_of_the_decoded_video(teacher):
    """Of an autoencoder that makes four frames of each latent frame, frames of the whole video are scored."""
    energy = RewardEnergy(config(part=(0.0, 1.0)))
    decoded: list[list[int] | None] = []

    def decode(latents, frames=None):
        decoded.append(frames)
        video = teacher.decode(latents).repeat_interleave(4, dim=1)
        return video if frames is None else video[:, frames]

    length = 4 * teacher.geometry.frames
    energy(seen_of_step(teacher.schedule, step_of(teacher, [300, 600]), [PROMPT] * 2, decode, frames=length), None)

    assert decoded == [[length // 4, 3 * length // 4]]


def step_rest(step: TeacherStep) -> tuple[torch.Tensor, ...]:
    """All of a step but its latents."""
    return step.t, step.o_c, step.o_u, step.omega


def test_a_reward_energy_is_0_outside_of_its_part(teacher):
    """Elsewhere the energy and its gradient are 0, and nothing is decoded."""
    step, decoded = step_of(teacher, [100, 333, 334, 100]), []

    def decode(latents, frames):
        decoded.append((len(latents), list(frames)))
        return teacher.decode(latents, frames)

    captions = [PROMPT, PROMPT, PROMPT, "a red circle " * 100]
    seen = seen_of_step(teacher.schedule, step, captions, decode)
    energy = RewardEnergy(config())
    (score,) = output_gradients(seen, [EnergyTerm(name="reward:clip", energy=energy, reference=None)])

    assert decoded == [(2, [2, 6])]
    assert (score.flatten(1).abs().amax(1) > 0).tolist() == [True, True, False, False]


def test_a_run_without_draws_in_its_part_is_refused():
    """The default part is the cleanest third; the profile of shapes draws from above it."""
    run = Run.from_profile("shapes", energies=["reward:clip"], rewards=[])
    with pytest.raises(
        GuidedCDError, match=r"energy 'reward:clip' acts below 0.33 .* Raise `energies.reward:clip.part`, such"
    ):
        RewardEnergy(run.energies["reward:clip"]).check_run(run)


def test_the_conformance_kit_passes():
    """The energy passes every conformance check of energies of the output."""
    component = Component(
        "energy", "reward", "guidedcd_adapters.energy:RewardEnergy", RewardEnergyConfig, "guidedcd/test"
    )
    for check in checks_of(component, config=config(part=(0.0, 1.0))):
        check()


@pytest.mark.slow
def test_a_run_guides_clips_by_a_reward(tmp_path):
    """Two steps on the proving ground: the energy guides the clips, and the store has no scores of it."""
    run = Run.from_profile(
        "shapes",
        energies={"reward:clip": {"relative": 0.2, "part": [0.0, 1.0]}},
        rewards=[],
        preprocess={"videos": 2, "draws_per_video": 1},
        train={"steps": 2, "log_every": 1, "rollouts": {"videos": 0}},
        device="cpu",
    )
    lines = trained(run, tmp_path / "run", tmp_path / "store")

    assert lines[0]["share/reward:clip"] == pytest.approx(0.2, rel=1e-3)
    assert not list((tmp_path / "store").glob("**/scores/*"))


def test_a_reward_is_a_metric(tmp_path):
    """`reward:clip` gives each video the reward of its evenly spaced frames, and NaN where the prompt is too long."""
    (chosen,) = components("metrics", {"reward:clip": {}}, "a test", below=[read_profile("shapes")])
    metric = chosen.build()
    videos, prompts = (
        torch.rand(3, 8, 3, 48, 48),
        [Prompt(text=PROMPT), Prompt(text="word " * 200), Prompt(text=PROMPT)],
    )

    values = metric(videos, prompts)["reward:clip"]

    reward = inside(chosen.config).build()
    frames = even_indices(8, inside(chosen.config).config.frames)
    with torch.no_grad():
        expected = reward(videos[[0, 2]][:, frames], [PROMPT, PROMPT])
    assert math.isnan(values[1]) and [values[0], values[2]] == pytest.approx(expected.tolist(), abs=1e-5)
    assert metric.better == {"reward:clip": "higher"}


def test_the_metric_breaks_no_rule(monkeypatch):
    """The metric `reward` passes the checks of metrics with a reward that has its weights."""
    monkeypatch.setenv("GUIDEDCD_BLOCK", "")
    (chosen,) = components("metrics", {"reward:clip": {}}, "a test", below=[read_profile("shapes")])
    for check in checks_of(load_plugins().get("metric", "reward"), config=chosen.config, installation=False):
        check()


def test_a_finished_evaluation_gains_held_out_rewards(tmp_path, install, capsys):
    """A finished evaluation gets rewards with the options of its run's profile, by flags and in Python."""
    install("tiny-components", tiny_run.PLUGIN)
    folder = tiny_run.run_folder(tmp_path / "run", evaluate={"prompts": ["a red circle", "a star"], "videos": 0})
    before = guidedcd.evaluate(folder, quiet=True)

    with pytest.raises(SystemExit) as exit_:
        main(["evaluate", str(folder), "--metrics", "reward:clip"])
    evaluation = guidedcd.evaluate(folder, metrics=["reward:hps"], quiet=True)

    scores = evaluation["rows"][0]["scores"]["prompts"]
    assert not exit_.value.code and {"reward:clip", "reward:hps"} <= set(scores) and scores["reward:clip"]["n"] == 2
    assert evaluation["metric_settings"]["reward:clip"]["options"]["inside"]["path"] == "shapes"
    assert scores["brightness"] == before["rows"][0]["scores"]["prompts"]["brightness"]
