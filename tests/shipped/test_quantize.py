"""The option `quantize` of shipped rewards: errors of scores and gradients, memory, and its refusal."""

from __future__ import annotations

import json

import pytest
import torch
from planned_runs import shipped_run

from guidedcd.acceleration.int8 import saved
from guidedcd.acceleration.precision import relative_error
from guidedcd.cli import main
from guidedcd.config.kinds import Chosen
from guidedcd.errors import GuidedCDError
from guidedcd.planning.meter import size
from guidedcd.planning.skeletons import outline
from guidedcd.plugins.registry import load_plugins
from guidedcd.rewards.contract import build_reward

CAPTIONS = ["a small green star moving up", "a large pink triangle quickly moving left"]


def chosen(name: str, **options: object) -> Chosen:
    """A reward with its options."""
    return Chosen(name, load_plugins().get("reward", name).config(**options))


@pytest.mark.parametrize("name", ["hps", "clip", "internv2"])
def test_rewards_in_int8_have_nearly_the_same_scores(name, capsys):
    """Cosines of a reward in int8 differ by less than 0.01, and gradients by less than 10 % of their size."""
    whole, rounded = (build_reward(chosen(name, quantize=how)) for how in ("no", "int8"))
    teacher = shipped_run().teacher.build()
    noise = torch.randn(2, *teacher.geometry.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        video = teacher.decode(noise, [0, 2, 4, 6])
    results = []
    for reward in (whole, rounded):
        frames = video.clone().requires_grad_(True)
        scores = reward(frames, CAPTIONS)
        results.append((scores.detach(), torch.autograd.grad(scores.sum(), frames)[0]))

    assert f"reward '{name}' of guidedcd/{name} in int8: " in capsys.readouterr().out
    assert size(whole) - size(rounded) == saved(rounded) > 0.6 * size(whole)
    assert 0 < (results[1][0] - results[0][0]).abs().max() < 0.01
    assert relative_error(results[1][1], results[0][1]) < 0.1


def test_a_reward_without_such_layers_refuses_the_option(capsys):
    """A reward without such layers is refused in one sentence that names the option, and so are unknown values."""
    with pytest.raises(
        GuidedCDError, match=r"'motion' .* has no linear layers .*leave out `rewards.motion.quantize`.$"
    ):
        build_reward(chosen("motion", quantize="int8"))
    for option in ("--rewards.hps.quantize", "--preprocess.quantize"):
        with pytest.raises(SystemExit) as done:
            main(["train", "--rewards", "hps", option, "int4"])
        assert done.value.code == 2
        assert f"{option} is 'int4'; it must be one of no, int8." in capsys.readouterr().err


def test_a_plan_counts_int8_weights():
    """The outline of a published reward in int8 has about half of its bfloat16 weights, and a graph runs through it."""
    options = {"path": "auto", "dtype": "bf16"}
    narrow, rounded = (outline(chosen("clip", quantize=how, **options)) for how in ("no", "int8"))
    assert 0.45 < size(rounded) / size(narrow) < 0.65
    frames = torch.empty(1, 2, 3, 16, 16, device="meta", requires_grad=True)
    pixels = rounded.prepare(frames.flatten(0, 1), rounded.image_size, True)
    (gradient,) = torch.autograd.grad(rounded.pixel_features(pixels).sum(), frames)
    assert gradient.shape == frames.shape


def test_a_trial_measures_the_error(tmp_path, monkeypatch, capsys):
    """`try reward` scores the same videos without the option; the table and reward.json have the differences."""
    monkeypatch.chdir(tmp_path)
    command = ["try", "reward", "hps", "--rewards.hps.quantize", "int8", "--device", "cpu", "--steps", "2"]
    with pytest.raises(SystemExit) as done:
        main(command)
    rounding = json.loads((tmp_path / "trials" / "hps" / "reward.json").read_text())["rounding"]
    assert not done.value.code and 0 < rounding["score"] < 0.02 and 0 < rounding["gradient"] < 0.2
    assert "weights  int8 changes scores by" in capsys.readouterr().out
