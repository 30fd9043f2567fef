"""The benchmark of video transformers, with tiny networks on the CPU."""

from __future__ import annotations

import json

import pytest


@pytest.mark.slow
def test_every_row_is_measured(repository, monkeypatch, tmp_path):
    """Passes, steps, preprocessing and loading give times, stock and fast agree, and a step has a finite loss."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import video_transformers

    out = tmp_path / "rows.json"
    video_transformers.main(["--tiny", "--device", "cpu", "--repeats", "1", "--warm-up", "0", "--out", str(out)])
    (run,) = json.loads(out.read_text())["runs"]
    rows = {row["name"]: row for row in run["rows"]}

    assert not [row for row in rows.values() if "error" in row]
    assert all(row["values"]["seconds"] > 0 for row in rows.values())
    passes = {name: row for name, row in rows.items() if name.startswith("forward")}
    assert len(passes) == 10 and all(row["details"]["relative_error"] < 1e-5 for row in passes.values())
    assert rows["preprocess small/no"]["values"]["samples_per_hour"] > 0
    assert rows["lora large/no"]["details"]["grad_norm"] > 0
    assert rows["loading"]["values"]["times_reading"] > 0


def test_no_row_begins_when_the_time_is_over(repository, monkeypatch, capsys):
    """With a budget of nothing every row has an error that states it."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import video_transformers

    video_transformers.main(["--tiny", "--only", "cd small/*,loading", "--budget", "0"])

    assert capsys.readouterr().out.count("the budget of 0 s is spent") == 3
