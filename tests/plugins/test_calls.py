"""Components that hang or fail in a call: which one it is, in one line."""

from __future__ import annotations

import threading

import pytest

from guidedcd.cli.errors import explain
from guidedcd.errors import GuidedCDError
from guidedcd.plugins import calls
from guidedcd.plugins.registry import Registry, blame

WHOSE = "energy 'odd' of acme/odd"


def test_a_long_call_is_named_ever_more_rarely():
    """The innermost call of each thread is named after a minute, then after twice the time, until it ends."""
    with blame("metric 'slow' of acme/slow"), blame(WHOSE):
        (began,) = [called for whose, called in calls._calls[threading.get_ident()] if whose == WHOSE]
        lines = [calls.late(began + seconds) for seconds in (59, 61, 100, 123)]
        assert lines == [
            [],
            [f"waiting  for {WHOSE}, which has been running for 61 s; Ctrl-C ends it"],
            [],
            [f"waiting  for {WHOSE}, which has been running for 123 s; Ctrl-C ends it"],
        ]

    assert threading.get_ident() not in calls._calls
    assert calls.late(began + 1000) == []


def failing(error: BaseException) -> BaseException:
    """The exception as a component's code raised it."""
    with pytest.raises(type(error)) as caught, blame(WHOSE):
        raise error
    return caught.value


def test_an_exception_of_a_component_is_one_line(capsys, monkeypatch):
    """The line names component, exception and place; a variable keeps the traceback; own errors have none."""
    status = explain(failing(ValueError("odd")), ["train"], Registry())
    printed = capsys.readouterr().err

    assert status == 2 and len(printed.splitlines()) == 1
    assert printed.startswith(f"error: {WHOSE} failed with ValueError: odd (test_calls.py, line ")
    assert printed.endswith("GUIDEDCD_TRACEBACK=1 shows the traceback.\n")
    assert explain(ValueError("of guidedcd itself"), ["train"], Registry()) is None
    monkeypatch.setenv("GUIDEDCD_TRACEBACK", "1")
    assert explain(failing(ValueError("odd")), ["train"], Registry()) is None


def test_a_sentence_of_a_component_is_completed(capsys):
    """An error that does not name the component is followed by its name; one that does is left alone."""
    explain(failing(GuidedCDError("it needs 4 frames.")), ["train"], Registry())
    explain(failing(GuidedCDError(f"{WHOSE} needs 4 frames.")), ["train"], Registry())

    assert capsys.readouterr().err.splitlines() == [
        f"error: it needs 4 frames. (in {WHOSE})",
        f"error: {WHOSE} needs 4 frames.",
    ]


def test_an_interrupted_call_is_named(capsys):
    """Ctrl-C in a component that hangs tells which one hung."""
    status = explain(failing(KeyboardInterrupt()), ["train"], Registry())

    assert status == 130
    words = f"interrupted while {WHOSE} was running: the same command continues where this one stopped."
    assert capsys.readouterr().err.strip() == words


def test_an_exception_whose_text_fails_is_described(capsys):
    """A faulty exception of a plugin is one line, too."""

    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert explain(failing(Odd()), ["try"], Registry()) == 2
    assert "Odd: its text cannot be read" in capsys.readouterr().err
