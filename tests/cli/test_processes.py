"""What the operating system and the current folder do to a command: signals, planted modules, odd variables."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from guidedcd import devices
from guidedcd.errors import GuidedCDError, Terminated
from guidedcd.training.interrupt import REPEATED_SECONDS, Stop, interruptible

HOSTILE = "import pathlib; pathlib.Path('OWNED').write_text('x')"


def plant(folder: Path) -> None:
    """Modules that libraries would be taken for, and the metadata of a plugin that nobody installed."""
    for name in ("attr", "attrs", "diffusers", "safetensors", "guidedcd_pta", "rich", "evil"):
        (folder / f"{name}.py").write_text(HOSTILE)
    (folder / "evil-1.dist-info").mkdir()
    (folder / "evil-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1\n")
    (folder / "evil-1.dist-info" / "entry_points.txt").write_text("[guidedcd]\nevil = evil\n")


def test_nothing_of_the_current_folder_runs(tmp_path):
    """`python -m guidedcd` loads no module and no plugin from the folder in which it is called."""
    plant(tmp_path)
    command = [sys.executable, "-m", "guidedcd", "plugins", "list"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert "shapes" in done.stdout
    assert "evil" not in done.stdout + done.stderr
    assert not (tmp_path / "OWNED").exists()


def test_child_processes_import_nothing_from_the_current_folder(tmp_path, monkeypatch):
    """The self-test's process imports libraries from where they are installed, also with PYTHONPATH=. set."""
    from guidedcd.inference.export.self_test import CleanProcess

    plant(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f".{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with CleanProcess(alone=False) as process:
        process.begin("out['one'] = torch.ones(1)", tmp_path, {}, {})
        assert process.results()["one"].item() == 1

    assert not (tmp_path / "OWNED").exists()


def test_sigterm_ends_a_command_as_ctrl_c_does(tmp_path):
    """One line, no traceback, status 143, and what was half-written is gone."""
    code = """
import os, signal, sys
from pathlib import Path
from guidedcd.cli import _prepare_process
from guidedcd.cli.errors import explain
from guidedcd.files import replacing
_prepare_process()
try:
    with replacing(Path("a")) as part:
        part.write_text("half")
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
except KeyboardInterrupt as error:
    sys.exit(explain(error, ["train"], None))
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 143
    assert done.stderr == "terminated: the same command continues where this one stopped.\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)], ids=["TERM", "INT"]
)
def test_the_first_signal_lets_a_step_end(number, kind, monkeypatch):
    """SIGTERM and Ctrl-C wait for the step; handed on twice they count once; only a later Ctrl-C stops at once."""
    with interruptible() as stop:
        assert not stop.after(1)
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert stop.after(2)
        assert type(stop.exception()) is kind
        signal.raise_signal(signal.SIGTERM)
        monkeypatch.setattr(stop, "_received_at", -2 * REPEATED_SECONDS)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


class Shared(dict):
    """A key-value store of two processes, as far as stopping needs it."""

    def check(self, keys):
        return all(key in self for key in keys)

    def compare_set(self, key, expected, value):
        return self.setdefault(key, value.encode())


def test_processes_stop_after_the_same_step():
    """The process that received the signal proposes a step that no other has passed, and all save after that one."""
    shared = Shared()
    first, second = Stop(), Stop()
    first._store = second._store = shared
    first.signal = signal.SIGTERM
    stops = [[stop.after(step) for stop in (second, first)] for step in (4, 5, 6)]

    assert stops == [[False, False], [False, False], [True, True]]


@pytest.mark.parametrize(
    ("variables", "words"),
    [({"RANK": "abc"}, "RANK must be a whole number"), ({"RANK": "5", "WORLD_SIZE": "2"}, "less than WORLD_SIZE")],
)
def test_variables_of_a_launch_are_checked(monkeypatch, variables, words):
    """What torchrun sets is a whole number below the number of processes, or one sentence."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(GuidedCDError, match=words):
        devices.process()
