"""`guidedcd plugins`: list, show, doctor and new."""

from __future__ import annotations

from pathlib import Path

import pytest


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
    assert "--energies.shake.top" in out and "How many. [>= 1]" in out
    assert "[one of inversion, single-step, clean]" in out
    assert "--energies.shake.fraction" in out
    toys("acme-broken", "import no_such_module")
    error = command("plugins", "show", "shak").err
    assert "Did you mean 'shake'?" in error and "Not loaded: acme-broken/acme_broken." in error


def test_doctor_tells_each_failure_and_fails(command, toys, monkeypatch):
    """Status 1 if anything is wrong, so that it can be used in CI."""
    monkeypatch.setenv("GUIDEDCD_BLOCK", "guidedcd")  # checking all the shipped ones takes long
    assert command("plugins", "doctor", "keep").status == 1  # the toys do not behave
    toys("acme-broken", "import no_such_module")
    done = command("plugins", "doctor", "-v")

    assert done.status == 1
    assert "acme-broken/acme_broken 1.0: ModuleNotFoundError: No module named 'no_such_module'" in done.out
    assert "Traceback" in done.out


def test_doctor_checks_what_a_plugin_requires(command, install):
    """A plugin for another version of guidedcd is reported."""
    offer = (
        "from guidedcd import *\n@hookimpl\ndef register_routes(register): register('far', 'a:b', config=RouteConfig)"
    )
    install("acme-future", offer, requires="guidedcd>=99")

    done = command("plugins", "doctor", "far")

    assert done.status == 1
    assert "is installed, >=99 is required" in done.out


@pytest.mark.parametrize("kind", ["energy", "reward", "route"])
def test_a_new_plugin_is_whole(command, tmp_path, kind):
    """`plugins new` writes a package that Python can compile, and refuses to overwrite."""
    done = command("plugins", "new", kind, "my-thing")
    again = command("plugins", "new", kind, "my-thing")

    folder = tmp_path / "guidedcd-my-thing"
    assert done.status == 0
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "guidedcd_my_thing", "pyproject.toml", "tests"]
    for file in folder.rglob("*.py"):
        compile(file.read_text(), file, "exec")
    assert again.status == 2 and "exists already" in again.err


def test_a_new_plugin_needs_a_proper_name(command):
    """Names are checked before anything is written."""
    done = command("plugins", "new", "energy", "My Thing")

    assert done.status == 2
    assert not list(Path().iterdir())
