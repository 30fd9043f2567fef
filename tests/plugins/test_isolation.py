"""Plugins that print, exit, block, or forget a decorator: every command works, and the plugin is named."""

from __future__ import annotations

import gc
import io
import json
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from guidedcd.errors import PluginError
from guidedcd.plugins import isolation
from guidedcd.plugins.registry import load_plugins

OFFER = """
import attrs
from guidedcd import EnergyConfig, hookimpl
{top}
@attrs.frozen(kw_only=True)
class Config(EnergyConfig):
    "Options."
    {option}

@hookimpl
def register_energies(register): register("odd", "acme_odd:Odd", config=Config)
"""


def offer(top: str = "", option: str = "") -> str:
    """The code of a plugin."""
    return OFFER.format(top=top, option=option)


def test_what_an_import_prints_is_recorded(install, capfd):
    """Text of `print` and of standard error reaches neither stream, and is noted."""
    install("acme-odd", offer("import sys; print('hello'); sys.stderr.write('careful')"))

    (note,) = [note for note in load_plugins().notes if note.plugin == "acme-odd/acme_odd"]

    assert "prints 'hello careful'" in note.text or "prints 'hellocareful'" in note.text
    assert capfd.readouterr() == ("", "")


def test_a_handler_made_at_import_still_logs_afterwards(install, capfd):
    """A stream that the plugin keeps passes text on once it is imported."""
    install("acme-odd", offer("import sys; kept = sys.stderr"))
    load_plugins()

    sys.modules["acme_odd"].kept.write("later")

    assert capfd.readouterr().err == "later"


def test_os_exit_at_import_costs_the_plugin_alone(install):
    """A plugin that ends the process by force does not load, and its neighbours do."""
    install("acme-exit", "import os; os._exit(3)")
    install("acme-odd", offer())

    registry = load_plugins()

    assert [failure.plugin for failure in registry.failures] == ["acme-exit/acme_exit"]
    assert "os._exit(3)" in str(registry.failures[0].error) and "odd" in registry.of_kind("energy")
    assert os._exit.__name__ == "_exit"


def test_os_exit_that_a_plugin_kept_ends_the_process_later(install, monkeypatch):
    """`from os import _exit` at import is refused during the import only."""

    def end(status):
        raise LookupError(status)

    monkeypatch.setattr(os, "_exit", end)
    install("acme-odd", offer("from os import _exit"))
    load_plugins()

    with pytest.raises(LookupError, match="3"):
        sys.modules["acme_odd"]._exit(3)


def test_a_stream_that_a_plugin_replaced_leaves_ours_open(install, monkeypatch):
    """The destructor of a `TextIOWrapper` over the buffer of standard output would close it."""
    ours = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", ours)
    replace = "import io, sys; sys.stdout = io.TextIOWrapper(sys.stdout.buffer)"
    install("acme-odd", offer(replace) + f"\nclass Odd:\n    def __init__(self, config): {replace}")

    load_plugins().get("energy", "odd").build()
    gc.collect()

    assert sys.stdout is ours and not ours.buffer.closed and not sys.stderr.closed


def test_imports_in_threads_restore_the_streams():
    """The imports of two threads follow one another, so that no stream of one remains after the other."""
    before = (os._exit, sys.stdout, sys.stderr)

    def load(name):
        with isolation.isolated(name, "BLOCK"):
            time.sleep(0.02 if name == "one" else 0.05)
        with isolation.printing_to_stderr():
            time.sleep(0.02)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(load, ["one", "two"]))

    assert (os._exit, sys.stdout, sys.stderr) == before


def test_a_slow_import_is_timed(install, monkeypatch):
    """An import that takes long is noted with its seconds."""
    monkeypatch.setattr(isolation, "SLOW", 0.05)
    install("acme-odd", offer("import time; time.sleep(0.1)"))

    texts = [note.text for note in load_plugins().notes if note.plugin == "acme-odd/acme_odd"]

    assert any("importing it takes 0." in text for text in texts)


def test_a_blocking_import_is_named_while_it_blocks(install, monkeypatch, capfd):
    """After some seconds a message names the plugin and the variable that leaves it out."""
    monkeypatch.setattr(isolation, "PATIENCE", 0.02)
    install("acme-odd", offer("import time; time.sleep(0.2)"))

    load_plugins()

    assert "plugin acme-odd/acme_odd, which is still being imported; GUIDEDCD_BLOCK=" in capfd.readouterr().err


def test_an_interrupted_import_is_named(install):
    """Ctrl-C during a blocking import states which plugin to block."""
    install("acme-odd", "raise KeyboardInterrupt")

    with pytest.raises(KeyboardInterrupt) as caught:
        load_plugins()

    assert "GUIDEDCD_BLOCK=acme-odd/acme_odd" in caught.value.__notes__[0]


HOOKS = {
    "no-decorator": ("def register_energies(register): ...", "register_energies lacks the decorator @hookimpl"),
    "near": ("def register_energy(register): ...", "register_energy lacks the decorator @hookimpl"),
    "unknown": (
        "from guidedcd import hookimpl\n@hookimpl\ndef register_energy(register): ...",
        "unknown hook 'register_energy'. Did you mean 'register_energies'",
    ),
    "none": ("x = 1", "implements no hook; define one of register_energies"),
    "class": (
        "from guidedcd import *\nclass A: ...\n@hookimpl\n"
        "def register_energies(register): register('a', A, config=EnergyConfig)",
        "target of energy 'a' must be a text such as 'package.module:Class'",
    ),
}


@pytest.mark.parametrize(("code", "message"), HOOKS.values(), ids=HOOKS)
def test_forgotten_decorators_and_misspelt_hooks_are_explained(install, code, message):
    """A forgotten decorator, a misspelt hook and a class as target are explained, and named with a missing name."""
    install("acme-odd", code)

    registry = load_plugins()

    (failure,) = registry.failures
    assert message in str(failure.error)
    with pytest.raises(PluginError, match="Not loaded: acme-odd/acme_odd"):
        registry.get("energy", "odd")


def test_options_of_hookimpl_and_lazy_objects_are_no_mistakes(install):
    """`specname` names the hook, `optionalhook` may be one of a later version, and no lazy object is touched."""
    install(
        "acme-odd",
        offer(
            "class Lazy:\n    def __getattr__(self, name): raise RuntimeError(name)\nlazy = Lazy()\n"
            "@hookimpl(optionalhook=True)\ndef register_later(register): ..."
        ).replace("@hookimpl\ndef register_energies", "@hookimpl(specname='register_energies')\ndef offer"),
    )

    registry = load_plugins()

    assert not registry.failures and "odd" in registry.of_kind("energy")


def test_a_constant_in_capitals_is_no_option(install):
    """A config may contain constants."""
    install("acme-odd", offer(option="LIMIT = 3"))

    assert not [note for note in load_plugins().notes if note.plugin == "acme-odd/acme_odd"]


OPTIONS = {
    "no-frozen": (
        "class Bare(Config):\n    gain: float = 1.0",
        "Bare lacks @attrs.frozen.*so that 'gain'",
    ),
    "no-type": ("@attrs.frozen(kw_only=True)\nclass Bare(Config):\n    gain = 1.0", "Bare.gain has no type"),
}


@pytest.mark.parametrize(("code", "message"), OPTIONS.values(), ids=OPTIONS)
def test_an_option_that_is_none_is_noted(install, code, message):
    """A config without decorator, and an option without type, would give no flag."""
    hook = "\n@hookimpl\ndef register_energies(register): register('odd', 'acme_odd:Odd', config=Bare)"
    install("acme-odd", offer().partition("\n@hookimpl")[0] + "\n" + code + hook)

    assert any(re.search(message, note.text) for note in load_plugins().notes)


def test_an_unknown_name_in_the_block_list_is_noted(monkeypatch):
    """A misspelt entry of GUIDEDCD_BLOCK would have no effect."""
    monkeypatch.setenv("GUIDEDCD_BLOCK", "nonsense, guidedcd/pta")

    texts = [note.text for note in load_plugins().notes]

    assert texts == ["it names 'nonsense', which is no installed plugin"]


def test_text_printed_by_a_target_leaves_results_alone(install, capfd):
    """Importing and building a component print to standard error, so that JSON on standard output stays JSON."""
    install("acme-odd", offer() + "\nclass Odd:\n    def __init__(self, config): print('built')")

    load_plugins().get("energy", "odd").build()
    print(json.dumps({}))

    assert capfd.readouterr() == ("{}\n", "built\n")


def test_a_known_import_is_not_isolated_again(install, monkeypatch):
    """guidedcd's own plugins and those imported without a complaint need no watching; others are watched each time."""
    from guidedcd.plugins import registry

    watched = []

    def noting(plugin, block):
        watched.append(plugin)
        return isolation.isolated(plugin, block)

    monkeypatch.setattr(registry, "isolated", noting)
    install("acme-odd", offer())
    install("acme-loud", offer("print('hello')").replace('"odd"', '"loud"'))
    first, second = load_plugins(), load_plugins()
    loaded, again = watched[:2], watched[2:]

    assert sorted(loaded) == ["acme-loud/acme_loud", "acme-odd/acme_odd"]
    assert again == ["acme-loud/acme_loud"]
    assert [str(one) for one in first.components] == [str(one) for one in second.components]


def test_another_version_or_module_is_isolated(install):
    """A module that was replaced since its import counts as unknown."""
    install("acme-odd", offer())
    load_plugins()
    assert isolation.is_known("acme-odd/acme_odd", "1.0")
    assert not isolation.is_known("acme-odd/acme_odd", "2.0")

    del sys.modules["acme_odd"]
    assert not isolation.is_known("acme-odd/acme_odd", "1.0")


def test_guidedcds_own_plugins_start_no_process(monkeypatch):
    """The process that names a fatal import starts with the first plugin of others."""
    from guidedcd.plugins import watcher
    from guidedcd.plugins.registry import Registry, entry_points

    started = []
    monkeypatch.setattr(watcher.subprocess, "Popen", lambda *args, **options: started.append(args))
    others = [id_ for id_, _, _ in entry_points() if not id_.startswith("guidedcd/")]
    with watcher.watched():
        assert isinstance(load_plugins(blocked=others), Registry)

    assert started == []
