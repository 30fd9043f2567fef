"""The benchmark of preprocessing."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from guidedcd.documents import read_json

TESTS = Path(__file__).parents[1]


def test_the_benchmark_runs_anywhere(tmp_path, monkeypatch, capsys):
    """`benchmarks/preprocessing.py --tiny` ends in seconds with all rows in its file and no error."""
    benchmarks = TESTS.parent / "benchmarks"
    monkeypatch.syspath_prepend(benchmarks)
    out = tmp_path / "figures.json"
    command = ["preprocessing.py", "--tiny", "--device", "cpu", "--fast", "layers", "--parts-only", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(benchmarks / "preprocessing.py"), run_name="__main__")

    rows = read_json(out)["runs"][0]["rows"]
    assert not [row for row in rows if "error" in row]
    assert {row["name"] for row in rows if "samples_per_hour" in row["values"]} == {
        "single-step reference, layers",
        "one draw per video, layers",
        "eight draws per video, layers",
    }
    assert "score and prediction, layers" in {row["name"] for row in rows}
    assert capsys.readouterr().out.count("official samples_per_hour=300") == 2


def test_the_benchmark_ends_in_order_when_its_time_is_over(tmp_path, monkeypatch):
    """Without time every row of every setting has an error, and a setting's shards come before the next setting."""
    benchmarks = TESTS.parent / "benchmarks"
    monkeypatch.syspath_prepend(benchmarks)
    out = tmp_path / "figures.json"
    command = [
        "preprocessing.py",
        "--tiny",
        "--device",
        "cpu",
        "--fast",
        "no,layers",
        "--budget",
        "0",
        "--out",
        str(out),
    ]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(benchmarks / "preprocessing.py"), run_name="__main__")

    rows = read_json(out)["runs"][0]["rows"]
    assert len(rows) == 12
    assert all(row["error"] == "TimeoutError: not measured: the budget of 0 s is spent" for row in rows)
    assert [row["name"].rpartition(", ")[2] for row in rows] == ["no"] * 6 + ["layers"] * 6
    assert [row["name"].startswith("whole shard") for row in rows] == [False, False, False, False, True, True] * 2
