"""Progress off a terminal: a few plain lines with rate and remaining time, not thousands."""

from __future__ import annotations

from guidedcd import console
from guidedcd.console import file_size, progress


def test_a_quick_job_is_one_line(capsys):
    """Nothing is repeated while little time passes, and the end is said once."""
    with progress("count", 1000, unit="things") as advance:
        for _ in range(1000):
            advance()
        advance(0)

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("count: 1000/1000 things, ") and "things/s" in lines[0]


def test_a_slow_job_says_how_long_it_will_take(capsys, monkeypatch):
    """Every ten seconds a line with rate, remaining time and note."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with progress("train", 100, start=40, unit="steps") as advance:
        for _ in range(4):
            now[0] += 6
            advance(5, "loss 0.5")

    assert capsys.readouterr().out.splitlines() == [
        "train: 50/100 steps, 1.2 s each, about 60 s left, loss 0.5",
        "train: 60/100 steps, 1.2 s each, about 48 s left, loss 0.5",
    ]


def test_shares_add_up_to_wholes(capsys):
    """Thirds of a step make a step, without a remainder of rounding."""
    with progress("sum", 2) as advance:
        for _ in range(6):
            advance(1 / 3)

    assert capsys.readouterr().out.startswith("sum: 2/2, ")


def test_sizes_of_files_have_the_unit_that_is_easiest_to_read():
    """Three digits and a decimal unit, up to terabytes."""
    assert [file_size(count) for count in (999, 1500, 2.5e12)] == ["999 B", "1.5 KB", "2.5 TB"]
