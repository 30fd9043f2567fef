"""The report of several runs: options that differ, scores paired with the first, curves in the same charts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evaluated_runs import a_run

from guidedcd.cli import main
from guidedcd.errors import GuidedCDError
from guidedcd.evaluation import tables
from guidedcd.evaluation.report.options import differing
from guidedcd.evaluation.report.side_by_side import write_comparison

HOSTILE = "<script>alert(1)</script>"


def written(tmp_path: Path, *folders: Path) -> str:
    """The page about the runs."""
    return write_comparison(folders, out=tmp_path / "page.html").read_text()


def test_only_options_that_differ_are_listed():
    """Equal options, names and commands are left out; a component of one run appears in its kind's selection alone."""
    first = {
        "name": "a",
        "command": "x",
        "seed": 1,
        "rewards": {"hps": {"weight": 1.0}},
        "train": {"optimizer": {"lr": 2}},
    }
    other = {
        "name": "b",
        "command": "y",
        "seed": 1,
        "rewards": {"hps": {"weight": 4.0}, "clip": {"weight": 1.0, "frames": 2}},
        "train": {"optimizer": {"lr": 3}},
    }

    assert differing([first, other, first]) == [
        ("rewards", ["hps", "hps, clip", "hps"]),
        ("rewards.hps.weight", ["1.0", "4.0", "1.0"]),
        ("train.optimizer.lr", ["2", "3", "2"]),
    ]


def test_older_runs_and_mixtures_are_compared():
    """The key `energy` of older runs is `energies`, and a dataset that is mixed with itself keeps its parts apart."""
    old = {"energy": {"pta": {"relative": 1}}, "data": [{"folder": {"path": "x"}}, {"folder": {"path": "y"}}]}
    new = {"energies": {"pta": {"relative": 2}}, "data": [{"folder": {"path": "x"}}, {"folder": {"path": "z"}}]}

    assert differing([old, new]) == [("energies.pta.relative", ["1", "2"]), ("data.folder (2).path", ["y", "z"])]


def test_scores_stand_beside_each_other(tmp_path):
    """The page has each run's mean and interval, and the paired difference from the first, with its verdict."""
    page = written(tmp_path, a_run(tmp_path / "a", "first"), a_run(tmp_path / "b", "second", above=0.25))

    for text in ("0.205", "0.456", "0.100 to 0.300", "second minus first", "+0.250 better", "+0.250 to +0.250"):
        assert text in page
    assert "first minus" not in page


def test_curves_of_all_runs_are_in_the_same_chart(tmp_path):
    """Every curve has a chart with a line for each run, which the legend names."""
    page = written(tmp_path, a_run(tmp_path / "a", "first"), a_run(tmp_path / "b", "second"))
    chart = page.partition("<h3>Loss: consistency</h3>")[2].partition("</figure>")[0]

    assert chart.count("<polyline") == 2
    assert "</span>first</li>" in chart and "</span>second</li>" in chart
    assert "first: 1 at step 1" in chart


def test_runs_that_cannot_be_paired_have_scores_alone(tmp_path):
    """Other seeds leave no difference and name the setting; a run without an evaluation is named too."""
    folders = [a_run(tmp_path / name, name) for name in ("first", "second", "third")]
    evaluation = json.loads((folders[1] / "evaluation.json").read_text())
    (folders[1] / "evaluation.json").write_text(json.dumps(evaluation | {"seeds": [1]}))
    (folders[2] / "evaluation.json").unlink()
    page = written(tmp_path, *folders)

    assert "<strong>second</strong> has no differences: it was evaluated with other seeds than first." in page
    assert "<strong>third</strong> has not been evaluated." in page
    assert "+0.000" not in page


def test_runs_of_the_same_name_are_named_by_folder(tmp_path):
    """Runs of one name are named by their folders, and nothing of a run is taken for HTML."""
    page = written(tmp_path, a_run(tmp_path / "a", HOSTILE), a_run(tmp_path / "b", HOSTILE, seed=HOSTILE))

    assert "b minus a" in page
    assert HOSTILE not in page


def test_the_command_refuses_what_is_no_pair(tmp_path, capsys):
    """The same run twice and a folder without a run are errors of one sentence, and no page is left."""
    folder = a_run(tmp_path / "a", "a")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "page.html"
    for other, message in (("a", "is given twice"), ("empty", "it has no run.json"), ("x", "no run folder")):
        with pytest.raises(SystemExit, match="2"):
            main(["report", str(folder), str(tmp_path / other), "--out", str(out)])
        assert message in capsys.readouterr().err

    assert not out.exists()


def test_a_damaged_evaluation_is_an_error(tmp_path):
    """An evaluation.json of another form names the file."""
    folders = [a_run(tmp_path / name, name) for name in ("a", "b")]
    (folders[1] / "evaluation.json").write_text("{}")

    with pytest.raises(GuidedCDError, match=r"evaluation\.json"):
        written(tmp_path, *folders)
    assert tables.read_if_there(folders[0]) is not None
