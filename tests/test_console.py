"""Progress off a terminal: a few plain lines with rate and remaining time, not thousands."""

from __future__ import annotations

from guidedcd import console
from guidedcd.console import file_size, progress


def test_a_quick_job_is_one_line(capsys):
    """Nothing is repeated while little time passes, and the end is printed once."""
    with progress("count", 1000, unit="things") as advance:
        for _ in range(1000):
            advance()
        advance(0)

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("count: 1000/1000 things, ") and "things/s" in lines[0]


def test_a_slow_job_prints_its_remaining_time(capsys, monkeypatch):
    """After the first seconds, then every ten seconds, a line with rate, remaining time and note."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with progress("train", 100, start=40, unit="steps") as advance:
        for _ in range(4):
            now[0] += 6
            advance(5, "loss 0.5")

    assert capsys.readouterr().out.splitlines() == [
        "train: 45/100 steps, 1.2 s each, about 66 s left, loss 0.5",
        "train: 55/100 steps, 1.2 s each, about 54 s left, loss 0.5",
    ]


def test_a_long_job_states_when_it_ends(capsys, monkeypatch):
    """The time of day follows a remaining time of minutes; steps that were done before do not count in the rate."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(console.time, "time", lambda: 1000.0)
    monkeypatch.setattr(
        console.time, "localtime", lambda seconds: (2026, 1, 1, 12, int(seconds - 1000) // 60, 0, 0, 0, 0)
    )
    with progress("evaluate", 100, unit="videos") as advance:
        advance(40, reused=True)
        now[0] += 60
        advance(10)

    assert capsys.readouterr().out == "evaluate: 50/100 videos, 6 s each, about 5 min left, until 12:05\n"


def test_shares_add_up_to_wholes(capsys):
    """Thirds of a step make a step, without a remainder of rounding."""
    with progress("sum", 2) as advance:
        for _ in range(6):
            advance(1 / 3)

    assert capsys.readouterr().out.startswith("sum: 2/2, ")


def test_sizes_of_files_have_the_unit_that_is_easiest_to_read():
    """Three digits and a decimal unit, up to terabytes."""
    assert [file_size(count) for count in (999, 1500, 2.5e12)] == ["999 B", "1.5 KB", "2.5 TB"]
