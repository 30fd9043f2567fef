"""`guidedcd plugins`: list, show, doctor and new."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from guidedcd.config.resolve import read_run, run_from_dict
from guidedcd.errors import GuidedCDError
from guidedcd.files import file_digest, write_json
from guidedcd.plugins import isolation


def test_list_shows_what_loaded_and_what_did_not(command, toys):
    """One line per component, one per plugin that failed; nothing is imported."""
    toys("acme-broken", "import no_such_module")

    done = command("plugins", "list")

    lines = done.out.splitlines()
    assert done.status == 0
    assert any(line.split()[:2] == ["energy", "shake"] and "acme-toys/acme_toys" in line for line in lines)
    assert any("acme-broken/acme_broken" in line and "did not load" in line for line in lines)


def test_show_lists_every_option(command, toys):
    """The plugin of a component, its flags, and all its options with their limits."""
    out = command("plugins", "show", "shake").out

    assert "acme-toys/acme_toys" in out
    assert "--energies.shake.top" in out and "How many. [at least 1]" in out
    assert "[one of inversion, single-step, clean, prediction]" in out
    assert "--energies.shake.fraction" in out
    toys("acme-broken", "import no_such_module")
    error = command("plugins", "show", "shak").err
    assert "Did you mean 'shake'?" in error and "Not loaded: acme-broken/acme_broken." in error


def test_show_states_what_profiles_have_instead(command):
    """The default run has other values than the plugin's own defaults."""
    out = command("plugins", "show", "pta").out

    assert "profile   shapes has relative 1.6, fraction 0.5 instead" in out


def test_doctor_lists_each_failure_and_exits_with_1(command, toys, monkeypatch):
    """Status 1 if anything is wrong, so that it can be used in CI."""
    monkeypatch.setenv("GUIDEDCD_BLOCK", "guidedcd")  # checking all the shipped ones takes long
    assert command("plugins", "doctor", "keep").status == 1  # the toys do not behave
    toys("acme-broken", "print('no licence'); import no_such_module")
    done = command("plugins", "doctor", "-v")

    assert done.status == 1
    message = "ModuleNotFoundError: No module named 'no_such_module'; before it failed, it printed: no licence"
    assert f"acme-broken/acme_broken 1.0: {message}" in done.out
    assert "Traceback" in done.out


BROKEN = """
from guidedcd import EnergyConfig, hookimpl
{top}
class Odd:
    needs = ()
    def __init__(self, config): ...
    def __call__(self, seen, reference): return seen.x0.mean()
@hookimpl
def register_energies(register): register("{name}", "acme_{module}:Odd", config=EnergyConfig)
"""


def test_doctor_survives_plugins_that_exit_or_print_and_names_contested_names(command, install, monkeypatch):
    """Each plugin is imported in a process of its own; every fault is one line, and the status is 1."""
    monkeypatch.setenv("GUIDEDCD_BLOCK", "guidedcd")
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)  # it may hide the warning of acme-two
    monkeypatch.setattr(isolation, "SLOW", float("inf"))  # a busy machine is no fault of a plugin
    install("acme-exit", "print('no licence', flush=True); import os; os._exit(3)")
    install("acme-one", BROKEN.format(name="same", module="one", top="print('hello')"))
    install("acme-two", BROKEN.format(name="same", module="two", top="import warnings; warnings.warn('old numpy')"))

    done = command("plugins", "doctor")

    lines = [line for line in done.out.splitlines() if line.startswith("wrong")]
    assert done.status == 1 and len(lines) == 4, done.out
    death = "importing it ended the process with status 3; the last that it printed is 'no licence'"
    assert f"wrong acme-exit/acme_exit 1.0: {death}" in lines
    assert any("energy 'same': acme-one/acme_one and acme-two/acme_two offer it." in line for line in lines)
    assert any("acme-one/acme_one: importing it prints 'hello'" in line for line in lines)
    assert any("acme-two/acme_two: importing it prints" in line and "old numpy" in line for line in lines)
    assert "`guidedcd plugins doctor NAME` also runs the code" in done.out


def test_doctor_prints_one_line_for_one_cause(command, install, monkeypatch):
    """An energy of the wrong shape is one line, although other rules would fail for the same reason."""
    monkeypatch.setenv("GUIDEDCD_BLOCK", "guidedcd")
    install("acme-one", BROKEN.format(name="same", module="one", top=""))

    done = command("plugins", "doctor", "same")

    (line,) = [line for line in done.out.splitlines() if line.startswith("wrong")]
    assert done.status == 1 and "returned shape () for 2 samples" in line
    assert "more checks run once these pass" in done.out


def test_doctor_checks_what_a_plugin_requires(command, install, monkeypatch):
    """A plugin for another version of guidedcd is reported."""
    offer = (
        "from guidedcd import RouteConfig, hookimpl\n@hookimpl\n"
        "def register_routes(register): register('far', 'a:b', config=RouteConfig)"
    )
    install("acme-future", offer, requires="guidedcd>=99")

    monkeypatch.setenv("GUIDEDCD_BLOCK", "guidedcd")
    done = command("plugins", "doctor", "far")

    assert done.status == 1
    assert "is installed, >=99 is required" in done.out


@pytest.mark.parametrize("kind", ["energy", "teacher"])
def test_a_new_plugin_is_whole(command, tmp_path, kind):
    """`plugins new` writes a package that Python can compile, and refuses to overwrite."""
    done = command("plugins", "new", kind, "my-thing")
    again = command("plugins", "new", kind, "my-thing")

    folder = tmp_path / "guidedcd-my-thing"
    assert done.status == 0
    names = [".github", "LICENSE", "README.md", "guidedcd_my_thing", "pyproject.toml", "tests"]
    assert sorted(p.name for p in folder.iterdir()) == names
    for file in folder.rglob("*.py"):
        compile(file.read_text(), file, "exec")
    assert again.status == 2 and "exists already" in again.err


def test_a_new_plugin_needs_a_proper_name(command):
    """Names are checked before anything is written."""
    done = command("plugins", "new", "energy", "My Thing")

    assert done.status == 2
    assert not list(Path().iterdir())


ONE_FILE = '''
import attrs
from guidedcd import EnergyConfig, hookimpl


@attrs.frozen(kw_only=True)
class Config(EnergyConfig):
    """Options."""

    gain: float = 1.0
    """Factor."""


class Still:
    reference_free = True

    def __init__(self, config): self.gain = config.gain
    def __call__(self, seen, reference): return self.gain * seen.x0.diff(dim=2).square().flatten(1).mean(1)


@hookimpl
def register_energies(register): register("still", f"{__name__}:Still", config=Config)
'''


@pytest.fixture
def plugin_file(tmp_path, monkeypatch):
    """A plugin that is one file; the files of this process are forgotten afterwards."""
    monkeypatch.setenv("GUIDEDCD_PLUGINS", "")
    path = tmp_path / "still_energy.py"
    path.write_text(ONE_FILE)
    yield path
    sys.modules.pop("still_energy", None)


def test_a_plugin_may_be_one_file(command, plugin_file):
    """`--plugin FILE.py` offers its components and flags, and the run records the file's hash."""
    argv = ("train", "--plugin", "still_energy.py", "--energies", "still", "--energies.still.gain", "2")
    run = command(*argv).run

    assert run.energies["still"].gain == 2
    assert run.to_dict()["plugin_files"] == {"still_energy.py": file_digest(plugin_file)[:16]}
    assert run_from_dict(run.to_dict()) == run


def test_a_wrong_plugin_file_is_one_sentence(command, plugin_file):
    """A missing file, a file that fails, and a name that is taken are explained."""
    assert "--plugin takes a Python file" in command("plugins", "list", "--plugin", "absent.py").err
    plugin_file.with_name("broken_energy.py").write_text("1 / 0")
    assert (
        "--plugin broken_energy.py cannot be loaded: ZeroDivisionError"
        in command("plugins", "list", "--plugin=broken_energy.py").err
    )


def test_a_plugin_file_may_be_importable(command, plugin_file, monkeypatch):
    """Where the folder of the file is in sys.path, Python finds the file itself under its name, also through a link."""
    monkeypatch.syspath_prepend(str(plugin_file.parent))
    link = plugin_file.parent / "links"
    link.symlink_to(plugin_file.parent, target_is_directory=True)

    for path in ("still_energy.py", "links/still_energy.py"):
        monkeypatch.setenv("GUIDEDCD_PLUGINS", "")
        assert "still" in command("plugins", "list", "--plugin", path).out

    folder = plugin_file.parent / "a:b"
    folder.mkdir()
    (folder / "still_energy.py").write_text(ONE_FILE)
    assert "contains ':'. Move the file" in command("plugins", "list", "--plugin", "a:b/still_energy.py").err


def test_a_run_of_a_plugin_file_names_it(command, plugin_file, monkeypatch):
    """Without the file, the error about the missing component states which one the run used."""
    run = command("train", "--plugin", "still_energy.py", "--energies", "still").run
    write_json(plugin_file.with_name("run.json"), run.to_dict())
    monkeypatch.setenv("GUIDEDCD_PLUGINS", "")

    with pytest.raises(GuidedCDError, match="no energy named 'still'.*set GUIDEDCD_PLUGINS=still_energy.py"):
        read_run(plugin_file.with_name("run.json"))


def test_check_prints_the_conformance_table(command, plugin_file, monkeypatch):
    """Each rule is a row, or an object with --json; the status tells whether one failed."""
    monkeypatch.setenv("GUIDEDCD_BLOCK", "guidedcd")
    plugin_file.write_text(ONE_FILE.replace("reference): return", "reference): print('called'); return"))

    done = command("plugins", "check", "still", "--json", "--plugin", "still_energy.py")
    rows = json.loads(done.out)

    assert done.status == 0 and {row["status"] for row in rows[1:]} == {"passed"}, done.out
    assert (rows[0]["check"], rows[0]["status"]) == ("offering_is_light", "skipped")
    assert "called" in done.err
    assert "energy_has_a_gradient" in [row["check"] for row in rows]
    plugin_file.write_text(ONE_FILE.replace(".mean(1)", ".mean()"))
    sys.modules.pop("still_energy")
    done = command("plugins", "check", "still", "--plugin", "still_energy.py")
    assert done.status == 1 and "returned shape () for 2 samples" in done.out


def test_an_error_of_a_component_names_it(command):
    """A sentence that a plugin wrote itself need not state whose it is."""

    def training(run, **options):
        error = GuidedCDError("it needs 4 frames.")
        error.add_note("in energy 'odd' of acme/odd")
        raise error

    done = command("train", training=training)

    assert (done.status, done.err) == (2, "error: it needs 4 frames. (in energy 'odd' of acme/odd)\n")


@pytest.mark.slow
def test_check_takes_a_value(command):
    """`plugins check` and `doctor` build a component with the value after its name."""
    done = command("plugins", "check", "energy:dynamics", "--json")
    rows = json.loads(done.out)

    assert done.status == 0 and {row["kind"] for row in rows} == {"reward"}
    assert {row["status"] for row in rows} == {"passed"}, rows
    assert command("plugins", "doctor", "energy:saturation").status == 0
    wrong = command("plugins", "check", "pta:x")
    assert (wrong.status, "takes no value" in wrong.err) == (2, True)
