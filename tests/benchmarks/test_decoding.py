"""The benchmark of decoding for rewards, with tiny sizes on the CPU."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_every_policy_is_measured_against_stock(repository, rows_of, tmp_path):
    """Every row has a time, `full` and `first` have no error, and a window has one."""
    out = tmp_path / "out.json"
    command = [sys.executable, repository / "benchmarks" / "decoding.py", "--tiny", "--device", "cpu", "--out", out]
    subprocess.run([*command, "--repeats", "1", "--warm-up", "0", "--budget", "400"], check=True, capture_output=True)
    rows = rows_of(out)

    assert all("error" not in row and row["values"]["seconds"] > 0 for row in rows.values())
    exact = ("few: full", "few: full, recomputing", "first: first", "first: first, recomputing", "even: full")
    for name in exact:
        assert rows[name]["details"]["pixel_error"] < 1e-4 and rows[name]["details"]["gradient_error"] < 1e-3
    assert rows["few: window:2"]["details"]["pixel_error"] > 1e-3
