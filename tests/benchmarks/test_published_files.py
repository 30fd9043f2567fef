"""The benchmark of published checkpoints at full size, here with tiny ones."""

from __future__ import annotations

import pytest


@pytest.fixture
def benchmark(script):
    """The script as a module."""
    return script("published_files")


@pytest.mark.slow
def test_every_row_is_measured_on_tiny_files(benchmark, rows_of, tmp_path):
    """Files in the published formats are written, read strictly and run, with finite numbers; none is left behind."""
    out, scratch = tmp_path / "out" / "published_files.json", tmp_path / "scratch"
    scratch.mkdir()

    status = benchmark.main(
        ["--tiny", "--device", "cpu", "--repeats", "1", "--out", str(out), "--scratch", str(scratch)]
    )

    rows = rows_of(out)
    assert status == 0
    assert {"load videocrafter2", "load student", "pta score", "sample, 4 steps"} < set(rows)
    assert {f"reward {name}" for name in benchmark.REWARDS} < set(rows)
    measured = [row for name, row in rows.items() if name.startswith(("pta", "sample", "reward"))]
    assert all(row["details"]["finite"] and row["details"]["norm"] > 0 for row in measured)
    assert all(row["values"]["seconds"] > 0 for row in measured)
    assert not any(scratch.iterdir())


def test_a_row_that_fails_leaves_the_others(benchmark, rows_of, tmp_path, monkeypatch):
    """The error is in the row, the next reward is measured, and the exit status is 1."""
    out, real = tmp_path / "published_files.json", benchmark.build_reward
    monkeypatch.setattr(benchmark, "build_reward", lambda kind, *rest: 1 / 0 if kind == "hps" else real(kind, *rest))

    status = benchmark.main(
        ["--tiny", "--device", "cpu", "--repeats", "1", "--only", "hps,*internv2", "--out", str(out)]
    )

    rows = rows_of(out)
    assert status == 1
    assert "ZeroDivisionError" in rows["reward hps"]["error"]
    assert rows["reward internv2"]["details"]["finite"]


def test_rows_beyond_the_budget_have_an_error(benchmark, rows_of, tmp_path):
    """With no time at all every row has an error, and the command ends."""
    out = tmp_path / "published_files.json"

    status = benchmark.main(["--tiny", "--device", "cpu", "--only", "hps,clip", "--budget", "0", "--out", str(out)])

    rows = rows_of(out)
    assert status == 1
    assert list(rows) == ["reward hps", "reward clip"]
    assert all("the budget of 0 s is spent" in row["error"] for row in rows.values())
