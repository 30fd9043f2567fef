"""What `plan` predicts and measures about the ways to decode for rewards."""

from __future__ import annotations

import attrs
import pytest
import torch
from planned_runs import gpu

import guidedcd
from guidedcd.config.resolve import run_from_dict
from guidedcd.planning.decode_cost import OTHERS, decode_errors
from guidedcd.planning.estimate import Estimator


def planned(one, decode: str, count: int = 3, frames: int = 33, **sections):
    """A run of a tiny folder with a reward of `count` frames of videos with `frames`."""
    options = {"path": str(one.folder), **one.size, "frames": frames, "decode": decode}
    return run_from_dict(
        {
            "device": "cpu",
            "teacher": {one.family: options},
            "data": [{"shapes": {"size": 4}}],
            "rewards": {"motion": {"frames": count}},
            "solver": {"steps": 4},
            "preprocess": {"videos": 2, "draws_per_video": 1, "batch_size": 1, "shard_size": 2},
            **sections,
        }
    )


def test_every_policy_has_its_time_and_memory(tiny):
    """A window takes less time and memory than all frames, `first` is refused for three frames, and one is chosen."""
    costs = {one.policy: one for one in Estimator(gpu()).decodings(planned(tiny("wan", "small"), "window:3"))}

    assert list(costs) == ["window:3", *OTHERS]
    assert [name for name, one in costs.items() if one.chosen] == ["window:3"]
    few, chosen, full = (costs[name] for name in ("window:2", "window:3", "full"))
    assert few.seconds < chosen.seconds <= full.seconds
    assert few.peak_gib < full.peak_gib
    assert costs["first"].seconds is None and "3 frames are wanted of videos with 1" in costs["first"].why


@pytest.mark.slow
def test_a_training_step_is_planned_with_the_policy(tiny):
    """The peak of rewards is that of the chosen policy, and decoding again lowers it."""
    one = tiny("wan", "small")

    def scored(decode: str, **train):
        return Estimator(gpu()).training(planned(one, decode, count=2, train={"batch_size": 1, **train})).rewards

    full, window = scored("full"), scored("window:2")
    assert window.peak < full.peak and window.flops < full.flops
    again = scored("full", activation_checkpoint={"decoder": True})
    assert again.peak < full.peak and again.flops > full.flops


@pytest.mark.slow
def test_most_is_planned_to_keep_attention(tiny):
    """A step that recomputes most of its blocks has fewer operations than one that recomputes all."""
    one = tiny("wan", "small")

    def operations(layers: str) -> float:
        train = {"batch_size": 1, "fast": "blocks", "activation_checkpoint": {"layers": layers}}
        return Estimator(gpu()).training(planned(one, "full", count=2, train=train)).step.flops

    assert operations("none") < operations("most") < operations("all")


@pytest.mark.slow
def test_a_plan_prints_policies_where_the_teacher_has_a_choice(tiny):
    """The table names the chosen policy; without rewards there is none."""
    run = planned(tiny("wan", "small"), "window:3", frames=9)
    plan = guidedcd.plan(run, on="h200", cheaper=False)
    assert "window:3 (chosen)" in str(plan) and "measured" not in str(plan).split("error")[0]
    assert {one["policy"] for one in plan.figures["decoding"]} == {"window:3", *OTHERS}
    alone = guidedcd.plan(attrs.evolve(run, rewards={}), on="h200", cheaper=False)
    assert "decoding" not in alone.figures and "window:3 (chosen)" not in str(alone)


def test_errors_are_measured_on_clips(tiny):
    """The error of `full` is 0, that of a window larger, and that of `first` is missing for three frames."""
    one = tiny("wan", "small")
    run = planned(one, "window:3")
    teacher = guidedcd.load_teacher(run.teacher, device="cpu").teacher
    latents = torch.randn(1, *teacher.geometry.latent_shape, generator=torch.Generator().manual_seed(0))
    rewards = {chosen.name: chosen.outline() for chosen in run.chosen("reward")}
    errors = decode_errors(run, teacher, rewards, latents)

    assert errors["full"] == 0 < errors["window:3"] < errors["window:2"]
    assert "first" not in errors and str(teacher.policy) == "window:3"


@pytest.mark.slow
def test_a_probe_measures_the_errors_of_the_runs_clips(tiny):
    """`plan --probe` prints each policy's error on a clip that it preprocessed."""
    plan = guidedcd.plan(planned(tiny("wan", "small"), "window:2"), probe=True, cheaper=False)
    errors = plan.figures["probe"]["decode_errors"]
    assert errors["full"] == 0 < errors["window:2"]
    assert "of the run's own clips" in str(plan)
