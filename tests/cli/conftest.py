"""A `command` that runs `guidedcd` without training."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable

import attrs
import pytest

from guidedcd.cli import main
from guidedcd.config.run import Run


@attrs.define
class Done:
    """What a command did."""

    status: int
    out: str
    err: str
    runs: list[Run]

    @property
    def run(self) -> Run:
        """The run that was trained."""
        assert self.status == 0, self.err
        (run,) = self.runs
        return run


@pytest.fixture
def command(capsys, monkeypatch, tmp_path) -> Callable[..., Done]:
    """Run `guidedcd` in an empty folder, with a training that only records its arguments."""
    monkeypatch.chdir(tmp_path)
    runs: list[Run] = []

    def distil(run: Run, **options: object) -> None:
        runs.append(run)
        print(sorted(options.items(), key=str))

    def command(*argv: str, training: Callable[..., None] = distil) -> Done:
        monkeypatch.setitem(sys.modules, "guidedcd.workflow", types.SimpleNamespace(distil=training))
        runs.clear()
        with pytest.raises(SystemExit) as exit_:
            main([*argv])
        captured = capsys.readouterr()
        return Done(exit_.value.code or 0, captured.out, captured.err, list(runs))

    return command
