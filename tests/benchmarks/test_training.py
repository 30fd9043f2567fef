"""The benchmark of training steps, with tiny networks on the CPU: it calls the trainer's own step."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(repository, folder, *arguments):
    """The benchmark in a process of its own, where no video library can be imported."""
    (folder / "av.py").write_text("raise ImportError('there is no video library')")
    script = str(repository / "benchmarks" / "training.py")
    command = [sys.executable, script, "--tiny", "--device", "cpu", "--repeats", "1", "--warm-up", "0"]
    code = (
        f"import sys, runpy; sys.path[:0] = [{str(folder)!r}, {script.rsplit('/', 1)[0]!r}]; sys.argv = sys.argv[1:]; "
    )
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run([command[0], "-c", code, *command[1:], *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_rows_are_measured_one_by_one_and_a_failure_stops_no_other(repository, rows_of, tmp_path):
    """Steps, rewards and sampling give seconds and finite losses; 8-bit AdamW without its package is an error."""
    out = tmp_path / "training.json"
    only = "all-checkpointed/no,lora-checkpointed/layers,cd-8bit-checkpointed/no,reward-*,sample/layers"
    output = run(repository, tmp_path, "--only", only, "--out", str(out))
    rows = rows_of(out)

    assert len(rows) == 7
    assert "official seconds=1.34" in output
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        assert "needs the package bitsandbytes" in rows.pop("cd-8bit-checkpointed/no")["error"]
    assert all(row["values"]["seconds"] > 0 for row in rows.values())
    assert rows["lora-checkpointed/layers"]["details"]["cd_loss"] > 0
    assert "reward-internv2" in output


def test_no_row_begins_when_the_time_is_over(script, capsys):
    """With a budget of nothing every row has an error that states it."""
    script("training").main(["--tiny", "--only", "cd/*", "--budget", "0"])

    assert capsys.readouterr().out.count("the budget of 0 s is spent") == 5


@pytest.mark.slow
def test_two_processes_are_measured_beside_one(repository, rows_of, tmp_path):
    """DDP and FSDP2 run the same step in two processes, and their rows contain how many times one they are."""
    out = tmp_path / "training.json"
    run(repository, tmp_path, "--only", "parallel", "--processes", "2", "--out", str(out), "--budget", "300")
    rows = rows_of(out)

    for name in ("parallel-ddp/layers", "parallel-fsdp/layers"):
        assert rows[name]["details"]["processes"] == 2
        assert rows[name]["values"]["times_one_gpu"] > 0


@pytest.mark.slow
def test_a_profile_is_a_table_of_operations(repository, tmp_path):
    """--profile prints where a step's time goes and writes the table."""
    output = run(repository, tmp_path, "--profile", "cd/no", "--out", str(tmp_path / "training.json"))

    assert "Self CPU" in output
    assert "aten::" in (tmp_path / "training.profile.txt").read_text()


@pytest.mark.slow
def test_operations_are_counted(repository, rows_of, tmp_path):
    """The same step launches the same operations each time, and an energy of the output some more."""
    counts = []
    for _ in range(2):
        out = tmp_path / "counts.json"
        run(repository, tmp_path, "--count", "--only", "cd/no,cd-x0-motion/no,sample/no", "--out", str(out))
        counts.append({name: row["values"]["operations"] for name, row in rows_of(out).items()})

    assert counts[0] == counts[1]
    assert 0 < counts[0]["cd/no"] < counts[0]["cd-x0-motion/no"] and len(counts[0]) == 2
