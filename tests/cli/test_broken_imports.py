"""Plugins that misbehave when they are imported: every command works without them, and the plugin is named."""

from __future__ import annotations

import os
import sys
import threading

import pytest
from forked import ended, error_line, start

from guidedcd.plugins.probe import probe
from guidedcd.plugins.registry import load_plugins

pytestmark = pytest.mark.slow

OFFER = """
{code}
import os, sys
from guidedcd import EnergyConfig, hookimpl
@hookimpl
def register_energies(register): register("odd", "acme_odd:Odd", config=EnergyConfig)
"""
FAILING = {
    "import of a missing module": ("import no_such_module", "No module named 'no_such_module'"),
    "syntax error": ("def broken(:", "acme_odd.py, line 2"),
    "sys.exit": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "os._exit": ("import os; os._exit(3)", "importing it ended the process with status 3"),
    "infinite recursion": ("def f(): f()\nf()", "RecursionError"),
    "out of memory": ("raise MemoryError", "MemoryError"),
    "GeneratorExit": ("raise GeneratorExit", "GeneratorExit"),
    "exception of no known kind": ("raise BaseException('odd')", "BaseException: odd"),
    "exception without a text": (
        "class Odd(Exception):\n    def __str__(self): return 1 / 0\nraise Odd",
        "Odd: its text cannot be read",
    ),
    "exception of a megabyte": ("raise ValueError('x ' * 500_000)", "x ...x "),
}
CHANGES = {
    "working directory": ("os.chdir('/')", "the working directory"),
    "environment": ("os.environ['CUDA_VISIBLE_DEVICES'] = '7'", "the environment variable CUDA_VISIBLE_DEVICES"),
    "all of the environment": ("os.environ.clear()", "the environment variable"),
    "cleared sys.path": ("sys.path.clear()", "sys.path"),
    "folder in front of sys.path": ("sys.path.insert(0, '/nowhere')", "sys.path"),
    "sys.excepthook": ("sys.excepthook = print", "sys.excepthook"),
    "warnings are errors": ("import warnings; warnings.simplefilter('error')", "the filters of warnings"),
    "warnings are hidden": ("import warnings; warnings.showwarning = print", "the filters of warnings"),
    "Ctrl-C is ignored": ("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)", "the handlers of signals"),
    "recursion limit": ("sys.setrecursionlimit(5432)", "Python's recursion limit"),
    "another print": ("import builtins; builtins.print = None", "builtins.print"),
    "another function of guidedcd": (
        "import guidedcd.plugins.registry as r; r.Registry.get = None",
        "Registry.get",
    ),
    "default dtype of torch": (
        "import torch; torch.set_default_dtype(torch.float64)",
        "torch's default dtype",
    ),
    "gradients are off": ("import torch; torch.set_grad_enabled(False)", "torch's gradient mode"),
    "seed of torch": ("import torch; torch.manual_seed(1234567)", "torch's seed"),
}
PRINTING = {
    "bytes that are no UTF-8": (r"sys.stdout.buffer.write(b'\xff\xfe')", r"prints '\\xff\\xfe'"),
    "a megabyte": ("print('x' * 10**6)", "xxx...'"),
    "terminal codes and half characters": (r"print('\x1b[31m \udcff')", "prints '"),
    "a closed stream": ("print('hello'); sys.stdout.close()", "prints 'hello'"),
    "a detached stream": ("sys.stdout.detach().write(b'hello')", "prints 'hello'"),
}


@pytest.fixture(autouse=True)
def only_it(monkeypatch):
    """Leave out the plugins of guidedcd, which take time."""
    monkeypatch.setenv("GUIDEDCD_BLOCK", "guidedcd")


@pytest.mark.parametrize(("code", "message"), FAILING.values(), ids=FAILING)
def test_a_plugin_that_fails_is_one_line_of_doctor(install, command, code, message):
    """The line names the plugin and the reason, the status is 1, and a neighbour works."""
    install("acme-odd", OFFER.format(code=code))
    install("acme-fine", OFFER.format(code="").replace('"odd", "acme_odd:Odd"', '"fine", "math:sqrt"'))

    listed, done = command("plugins", "list"), command("plugins", "doctor")

    (line,) = [line for line in done.out.splitlines() if line.startswith("wrong acme-odd")]
    assert (listed.status, done.status) == (0, 1)
    assert line.startswith("wrong acme-odd/acme_odd 1.0: ") and message in line and len(line) < 2000
    assert "acme-odd/acme_odd 1.0 did not load" in listed.out
    assert "fine" in load_plugins().of_kind("energy")


@pytest.mark.parametrize(("code", "phrase"), CHANGES.values(), ids=CHANGES)
def test_a_change_of_the_process_is_noted_and_undone(install, monkeypatch, code, phrase):
    """What all plugins share is as before, and the note names what was changed."""
    import torch

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    install("acme-odd", OFFER.format(code="import os, sys\n" + code))
    before = (os.getcwd(), dict(os.environ), sys.excepthook, sys.getrecursionlimit(), print, torch.get_default_dtype())
    folders, seed = list(sys.path), torch.initial_seed()

    notes = [note.text for note in load_plugins().notes if note.plugin == "acme-odd/acme_odd"]

    assert any(text.startswith("importing it changes ") and phrase in text for text in notes)
    after = (os.getcwd(), dict(os.environ), sys.excepthook, sys.getrecursionlimit(), print, torch.get_default_dtype())
    assert after == before and sys.path[: len(folders)] == folders
    assert torch.is_grad_enabled() and not torch.are_deterministic_algorithms_enabled()
    assert torch.initial_seed() == seed


@pytest.mark.parametrize(("code", "phrase"), PRINTING.values(), ids=PRINTING)
def test_any_output_is_recorded(install, capfd, code, phrase):
    """Bytes and broken text are noted, in a line of limited length, and reach neither stream."""
    install("acme-odd", OFFER.format(code="import sys\n" + code))

    (note,) = [note for note in load_plugins().notes if note.plugin == "acme-odd/acme_odd"]

    assert phrase in note.text and len(note.text) < 500
    assert capfd.readouterr() == ("", "")
    print("still open")
    assert capfd.readouterr().out == "still open\n"


def test_a_write_to_the_descriptor_leaves_standard_output_alone(install, capfd):
    """Text of C code goes to standard error, so that JSON stays JSON; a closed descriptor is open again."""
    install("acme-odd", OFFER.format(code="import os; os.write(1, b'from C'); os.close(1)"))

    load_plugins()
    os.write(1, b"{}")

    assert capfd.readouterr() == ("{}", "from C")


def test_a_thread_of_an_import_does_not_block_the_end(install):
    """Python waits for threads at its end unless they are daemons; the note names the thread."""
    wait = "import threading; stop = threading.Event(); threading.Thread(target=stop.wait, name='mine').start()"
    install("acme-odd", OFFER.format(code=wait))

    (note,) = [note for note in load_plugins().notes if note.plugin == "acme-odd/acme_odd"]
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "mine"]
    sys.modules["acme_odd"].stop.set()

    assert "importing it starts the thread 'mine'" in note.text and thread.daemon


def test_a_fork_at_import_does_not_run_the_command_twice(install, tmp_path):
    """The child ends where the import ends."""
    install("acme-odd", OFFER.format(code="import os; os.fork()"))
    folder = tmp_path / "fork"
    folder.mkdir()

    done = ended(start(["plugins", "list"], folder), folder)

    assert done.status == 0 and done.out.count("acme-odd/acme_odd") == 1, done


DEATHS = {
    "segmentation fault": ("import ctypes, faulthandler; faulthandler.disable(); ctypes.string_at(0)", 11),
    "abort": ("import faulthandler, os; faulthandler.disable(); os.abort()", 6),
    "kill": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 9),
}


@pytest.mark.parametrize(("code", "number"), DEATHS.values(), ids=DEATHS)
def test_a_crash_names_the_plugin_and_doctor_survives_it(install, tmp_path, command, code, number):
    """A watcher prints the last sentence of a process that died; doctor imports the plugin in a process of its own."""
    install("acme-odd", OFFER.format(code=code))
    folder = tmp_path / "death"
    folder.mkdir()

    dead, done = ended(start(["plugins", "list"], folder), folder), command("plugins", "doctor")

    assert dead.status == -number and error_line(folder) == (
        "error: guidedcd was killed while plugin acme-odd/acme_odd was imported; "
        "GUIDEDCD_BLOCK=acme-odd/acme_odd leaves it out.\n"
    )
    assert done.status == 1
    assert f"wrong acme-odd/acme_odd 1.0: importing it ended the process with signal {number}\n" in done.out


PROBED = {
    "hang": ("import time; print('begin', flush=True); time.sleep(100)", "longer than 4 s; the last that it printed"),
    "Ctrl-C": ("raise KeyboardInterrupt", "ended the process with signal 2"),
    "thread": ("import threading; threading.Thread(target=threading.Event().wait, name='mine').start()", "'mine'"),
    "fork": ("import os; os.fork()", ""),
    "folder": ("import os; os.chdir('/')", "the working directory"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("code", "phrase"), PROBED.values(), ids=PROBED)
def test_doctor_measures_an_import_in_its_own_process(install, code, phrase):
    """Hangs, threads and changes are found there too, and nothing waits for them."""
    install("acme-odd", OFFER.format(code=code))

    result = probe("acme_odd", 4.0 if "hang" in phrase or "longer" in phrase else 60.0)

    texts = [result.death, *result.complaints("acme_odd")]
    assert any(phrase in text for text in texts) and (phrase or not any(texts)), texts
