"""A run's curves beside those of its profile's reference run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import attrs
import pytest

from guidedcd.config.sources import profiles, reference_of
from guidedcd.evaluation.report.health import band, compared, health, reference, smoothed
from guidedcd.evaluation.report.run_files import RunFiles

REWARDS = {"hps": {"weight": 1.0}}


def a_run(folder: Path, *, profile: str = "mine", shift: float = 0.0, after: int = 0, **run: object) -> RunFiles:
    """A run of 60 logged steps, whose consistency loss is `shift` higher from step `after` on."""
    folder.mkdir(exist_ok=True)
    described = {"profile": profile, "seed": 0, "teacher": {"shapes": {}}, "rewards": REWARDS, "name": "x"}
    (folder / "run.json").write_text(json.dumps(described | run))
    lines = []
    for step in range(1, 61):
        noise = 0.05 * math.sin(17.3 * step)
        line = {"step": step, "loss": noise - 1, "cd_loss": 1 / step + noise + (shift if step > after else 0)}
        lines.append(line | {"reward/hps": 0.5 + noise, "seconds": float(step), "lr": 0.1})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return RunFiles.read(folder)


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """A profile `mine` with the curves of a run."""
    lines = reference(a_run(tmp_path / "good"), {"command": "guidedcd train"})
    file = tmp_path / "mine.reference.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    original = reference_of
    monkeypatch.setattr(
        "guidedcd.evaluation.report.health.reference_of", lambda name: file if name == "mine" else original(name)
    )
    return file


def test_the_same_run_lies_inside(tmp_path, profile):
    """Every curve of the reference run itself is inside, and the sentence begins with yes; clocks are not compared."""
    section = health(a_run(tmp_path / "own", seed=3))

    assert section is not None and section.options is None
    assert section.sentence.startswith("Yes: all 3 curves of this run lie inside")
    assert [row.head.text for row in section.table.rows] == ["loss", "cd_loss", "reward/hps"]
    assert all(chart.band for chart in section.charts)


def test_a_curve_that_leaves_is_named(tmp_path, profile):
    """A loss that rises after step 40 is outside above its band, from there to the end, and the others are inside."""
    section = health(a_run(tmp_path / "own", shift=1.0, after=40, train={"steps": 60}))

    assert section is not None
    assert "1 of 3 curves leaves its band, compared at 60 logged steps: cd_loss (above)." in section.sentence
    row = section.table.rows[1]
    assert (row.cells[0].text, row.cells[0].verdict) == ("outside, above", "bad")
    assert row.cells[0].note is not None and 38 <= int(row.cells[0].note.split()[2]) <= 45


def test_the_beginning_of_a_run_is_no_whole_run(tmp_path, profile):
    """A run that ends early is so far inside, and the sentence has the steps that were compared."""
    files = a_run(tmp_path / "own")
    section = health(attrs.evolve(files, log=files.log[:20]))

    assert section is not None and section.sentence.startswith("So far yes: all 3 curves")
    assert section.sentence.endswith("compared at 20 logged steps in the first 20 of its 60 steps.")


def test_runs_that_are_no_match_are_not_compared(tmp_path, profile):
    """Another teacher, another profile and a short log have no comparison; other rewards have that of the rest."""
    assert health(a_run(tmp_path / "a", teacher={"wan": {}})) is None
    assert health(a_run(tmp_path / "b", profile="vcm")) is None
    assert health(a_run(tmp_path / "c", profile="no-profile")) is None
    short = a_run(tmp_path / "d")
    short = attrs.evolve(short, log=short.log[:3])
    assert health(short) is None
    other = health(a_run(tmp_path / "e", rewards={"clip": {}}))
    assert other is not None and [row.head.text for row in other.table.rows] == ["cd_loss", "reward/hps"]


def test_a_constant_curve_has_a_band():
    """A curve without spread has a band of 2 % of its size, in which the same curve lies."""
    curve = [(float(step), 1.6) for step in range(10)]

    assert band(curve)[0] == pytest.approx((0, 1.6 - 0.032, 1.6 + 0.032))
    position = compared("share/pta", smoothed(curve), band(curve))
    assert position is not None and position.is_inside and position.outside == ""


def test_too_few_common_steps_are_no_comparison():
    """Steps beyond the reference's end do not count."""
    surrounding = band([(float(step), 1.0) for step in range(10)])

    assert compared("x", [(step, 1.0) for step in (7.0, 8.0, 9.0, 20.0, 30.0, 40.0)], surrounding) is None


@pytest.mark.parametrize("name", sorted(profiles()))
def test_shipped_references_fit_their_profiles(name):
    """A profile that names a file of curves ships it: of a finished run of this profile, with its command and date."""
    file = reference_of(name)
    if file is None:
        return
    about, *lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())

    assert about["run"]["profile"] == name and about["command"] and about["date"]
    assert lines[-1]["step"] == about["run"]["train"]["steps"]
    assert file.name.startswith(name)
