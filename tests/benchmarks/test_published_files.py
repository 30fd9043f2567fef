"""The benchmark of published checkpoints at full size, here with tiny ones."""

from __future__ import annotations

import json
import sys

import pytest


@pytest.fixture
def benchmark(repository, monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    import published_files

    return published_files


def test_every_line_is_measured_on_tiny_files(benchmark, tmp_path):
    """Files in the published formats are written, read strictly and run, with finite numbers; none is left behind."""
    out, scratch = tmp_path / "out" / "found.json", tmp_path / "scratch"
    scratch.mkdir()

    status = benchmark.main(
        ["--tiny", "--device", "cpu", "--repeats", "1", "--out", str(out), "--scratch", str(scratch)]
    )

    found = {line["line"]: line for line in json.loads(out.read_text())["lines"]}
    assert status == 0
    assert {"load videocrafter2", "load student", "pta score", "sample, 4 steps"} < set(found)
    assert {f"reward {name}" for name in benchmark.REWARDS} < set(found)
    run = [line for name, line in found.items() if name.startswith(("pta", "sample", "reward"))]
    assert all(line["finite"] and line["norm"] > 0 and line["seconds"] > 0 for line in run)
    assert not any(scratch.iterdir())


def test_a_line_that_fails_leaves_the_others(benchmark, tmp_path, monkeypatch):
    """The error is a line of its own, the next reward is measured, and the exit status is 1."""
    out, real = tmp_path / "found.json", benchmark.built
    monkeypatch.setattr(benchmark, "built", lambda kind, *rest: 1 / 0 if kind == "hps" else real(kind, *rest))

    status = benchmark.main(
        ["--tiny", "--device", "cpu", "--repeats", "1", "--only", "hps,internv2", "--out", str(out)]
    )

    found = {line["line"]: line for line in json.loads(out.read_text())["lines"]}
    assert status == 1
    assert "ZeroDivisionError" in found["reward hps"]["error"]
    assert found["reward internv2"]["finite"]


def test_what_has_not_begun_in_time_is_left_out(benchmark, tmp_path):
    """With no time at all every line says so, and the command ends."""
    out = tmp_path / "found.json"

    status = benchmark.main(["--tiny", "--device", "cpu", "--only", "hps,clip", "--limit", "0", "--out", str(out)])

    lines = json.loads(out.read_text())["lines"]
    assert status == 1
    assert ["left out" in line.get("error", "") for line in lines] == [True, True, False]
