"""The harness of the benchmarks: what a call costs, rows and their file, on the CPU."""

from __future__ import annotations

import json
import math
import time
import types

import pytest


@pytest.fixture
def harness(repository, monkeypatch):
    """The module."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import harness

    return harness


@pytest.fixture
def recorder(harness, tmp_path):
    """Rows of a benchmark that writes a file."""
    options = types.SimpleNamespace(out=tmp_path / "rows.json", budget=60.0, only="", tiny=True, device="cpu")
    return harness.Recorder(options, "training")


def test_warm_up_is_not_counted(harness):
    """The median is of the measured calls, the first call is reported alone, and its output is kept."""
    durations = iter([0.05, 0.0, 0.0, 0.0])
    timing = harness.time_calls(lambda: time.sleep(pause := next(durations)) or pause, "cpu", repeats=3, warm_up=1)

    assert len(timing.seconds) == 3
    assert timing.median < 0.05 <= timing.first_seconds
    assert timing.first_output == 0.05
    assert math.isnan(timing.peak_gb)


def test_a_deferred_call_is_finished_after_the_next_launch(harness):
    """Launches and the reading of their metrics alternate as in the trainer, and nothing is left unread."""
    events: list[str] = []

    def launch():
        number = len([event for event in events if event.startswith("launch")])
        events.append(f"launch {number}")
        return lambda: events.append(f"read {number}")

    harness.time_calls(launch, "cpu", repeats=2, warm_up=1, deferred=True)

    assert events == ["launch 0", "launch 1", "read 0", "launch 2", "read 1", "read 2"]


def test_settings_are_measured_in_turn(harness, recorder):
    """Each setting has one measurement a round; one that fails has a row with the error and is left out."""
    order: list[str] = []

    def measure(name: str):
        order.append(name)
        if name == "broken":
            raise ValueError("no such kernel")
        return harness.Timing((float(len(order)),), 9.0)

    timings = recorder.in_turn({name: lambda name=name: measure(name) for name in ("one", "broken", "two")})

    assert order == ["one", "broken", "two", "one", "two"]
    assert timings["one"].seconds == (1.0, 4.0)
    assert timings["two"].seconds == (3.0, 5.0)
    assert set(timings) == {"one", "two"}
    assert [row["name"] for row in recorder.rows] == ["broken"]


def test_rows_are_in_the_file_as_soon_as_they_are_known(recorder, capsys):
    """The file has the schema, the machine and all rows; numbers that are not finite are left out."""
    recorder.add("cd/layers", {"seconds": 0.123456789, "peak_gb": math.nan}, parameters=3)
    data = json.loads(recorder.out.read_text())
    (run,) = data["runs"]

    assert data["schema"] == 1
    assert run["benchmark"] == "training"
    assert run["machine"]["device"] == "cpu"
    assert run["rows"][0]["values"] == {"seconds": 0.123457}
    assert run["rows"][0]["details"] == {"parameters": 3}
    assert "official seconds=1.02" in capsys.readouterr().out


def test_the_command_is_recorded_without_its_file(harness):
    """Whoever repeats a command chooses the file."""
    recorded = harness.command("unet", ["--only", "fast,stock", "--out", "a.json", "--budget=3"])

    assert recorded == "python benchmarks/unet.py --only fast,stock --budget=3"
