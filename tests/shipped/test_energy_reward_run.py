"""A student trained to its end with the reward `energy:dynamics` alone."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

import guidedcd
from guidedcd.documents import read_json
from guidedcd.training.log import read_log

pytestmark = pytest.mark.slow

NAME = "energy:dynamics"
STEPS = 24
NOISE_RANGE = [0.2, 0.5]
"""Where the noise levels of the teacher lie between 0.5 and 0.95, at which `dynamics` acts."""


def distilled(folder: Path, weight: float) -> Path:
    """The folder of a run whose only reward has this weight; two runs share a store and random numbers."""
    run = guidedcd.Run.from_profile(
        "shapes",
        energies=[],
        rewards={NAME: {"weight": weight, "inside": {"margin": 1.0}}},
        routes=[],
        preprocess={"videos": 4, "draws_per_video": 4, "noise_range": NOISE_RANGE},
        train={"steps": STEPS, "batch_size": 2, "log_every": 1, "rollouts": {"videos": 0}, "guided_steps": STEPS},
        evaluate={"prompts": 3, "videos": 0, "steps": 2, "teacher_steps": 2},
        device="cpu",
    )
    out = folder / f"weight-{weight:g}"
    return guidedcd.distil(run, out=out, store=folder / "store", evaluation=weight > 0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """A run with the reward, and one whose reward is only logged."""
    folder = tmp_path_factory.mktemp("energy-reward")
    return distilled(folder, 3.0), distilled(folder, 0.0)


def energies(run: Path) -> list[float]:
    """The energy of the student's predictions in each step: minus the logged reward."""
    return [-line[f"reward/{NAME}"] for line in read_log(run / "log.jsonl")]


def test_the_energy_of_the_predictions_falls(runs):
    """On the same clips, noises and steps, its mean over the last third is below that of a run without the reward."""
    with_reward, without = map(energies, runs)
    last = STEPS // 3

    assert len(with_reward) == len(without) == STEPS
    assert with_reward[0] == pytest.approx(without[0], rel=1e-3)  # the students are the same at the first step
    assert statistics.mean(with_reward[-last:]) < 0.6 * statistics.mean(without[-last:])


def test_the_student_is_evaluated_and_exported(runs, tmp_path):
    """The evaluation has values of every prompt, and the exported pipeline samples a video."""
    evaluation = read_json(runs[0] / "evaluation.json")
    guidedcd.export(runs[0], tmp_path / "out", format="diffusers")

    assert sum(len(split["prompts"]) for split in evaluation["splits"].values()) == 3
    assert (runs[0] / "report.html").exists() and (tmp_path / "out" / "model_index.json").exists()
