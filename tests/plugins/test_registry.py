"""Discovery: a broken plugin costs exactly itself, and names are never guessed."""

from __future__ import annotations

import pytest

from guidedcd.errors import PluginError
from guidedcd.plugins.registry import HOOKS, Registry, blame, load_plugins

OFFER = """
from guidedcd import EnergyConfig, hookimpl
@hookimpl
def register_energies(register):
    register("{name}", "acme:Thing", config=EnergyConfig)
"""
BROKEN = {
    "import": "import no_such_module",
    "syntax": "def broken(:",
    "exit": "raise SystemExit('no licence')",
    "bad-name": OFFER.format(name="Bad Name"),
    "unknown-hook": "from guidedcd import hookimpl\n@hookimpl\ndef register_energy(register): ...",
    "argument": "from guidedcd import hookimpl\n@hookimpl\ndef register_energies(register, trainer): ...",
    "in-the-hook": "from guidedcd import hookimpl\n@hookimpl\ndef register_energies(register): 1 / 0",
    "half-way": OFFER.format(name="half") + "    1 / 0",
    "wrong-config": OFFER.format(name="x").replace("config=EnergyConfig", "config=dict"),
    "config-of-another-kind": OFFER.format(name="x").replace("EnergyConfig", "RewardConfig"),
    "target": OFFER.format(name="x").replace("acme:Thing", "acme"),
    "twice": OFFER.format(name="x") + "    register('x', 'acme:Thing', config=EnergyConfig)",
    "no-default": """
import attrs
from guidedcd import EnergyConfig, hookimpl
@attrs.frozen(kw_only=True)
class Config(EnergyConfig):
    must: int
@hookimpl
def register_energies(register):
    register("x", "acme:Thing", config=Config)
""",
}


@pytest.mark.parametrize("code", BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_reported_and_the_rest_still_load(install, code):
    """One broken plugin costs exactly itself."""
    install("acme-broken", code)
    install("acme-fine", OFFER.format(name="fine"))

    registry = load_plugins()

    assert "acme-broken/acme_broken" in [f.plugin for f in registry.failures]
    assert {"fine", "pta"} <= set(registry.of_kind("energy"))
    assert not {"half", "x"} & set(registry.of_kind("energy"))


def test_a_malformed_entry_point_is_reported(install):
    """A bad specification in entry_points.txt is an error of that plugin alone."""
    install("acme-broken", "", spec="not a spec !!")

    assert "malformed" in " ".join(str(f.error) for f in load_plugins().failures)


@pytest.mark.parametrize("text", ["no section here\n", "[guidedcd\nx = y\n", "\x00\x01", "[guidedcd]\nx\n"])
def test_an_unreadable_entry_points_file_affects_its_plugin_alone(install, text):
    """What one distribution writes into its metadata cannot take the others down."""
    install("acme-broken", "", entry_points=text)

    assert "pta" in load_plugins().of_kind("energy")


def test_a_name_of_two_plugins_is_an_error_until_one_is_blocked(install, monkeypatch):
    """Neither plugin wins a contested name; blocking one settles it, by id or by distribution."""
    install("acme-twin", OFFER.format(name="pta"))

    with pytest.raises(PluginError, match="acme-twin/acme_twin and guidedcd/pta.*GUIDEDCD_BLOCK=acme-twin/acme_twin"):
        load_plugins().get("energy", "pta")
    assert load_plugins(blocked=["acme-twin"]).get("energy", "pta").plugin == "guidedcd/pta"
    monkeypatch.setenv("GUIDEDCD_BLOCK", "other, guidedcd/pta")
    assert load_plugins().get("energy", "pta").plugin == "acme-twin/acme_twin"


def test_a_misspelt_name_is_corrected():
    """The error names what is there."""
    with pytest.raises(PluginError, match="no energy named 'ptaa'. Did you mean 'pta'.*Known: "):
        load_plugins().get("energy", "ptaa")


def test_a_name_of_another_kind_is_recognised():
    """The error about an unknown energy states that a reward has the name."""
    with pytest.raises(PluginError, match="There is a reward of that name"):
        load_plugins().get("energy", "hps")


def test_what_did_not_load_is_named_when_something_is_missed(install):
    """The reason why a component is missing may be that its plugin is broken."""
    install("acme-broken", "import no_such_module")

    with pytest.raises(PluginError, match="Not loaded: .*acme-broken/acme_broken"):
        load_plugins().get("energy", "lost")


def test_what_a_failed_plugin_printed_is_a_note(install):
    """The last text before the exception often states its cause."""
    install("acme-odd", "print('no licence'); 1 / 0")

    (failure,) = load_plugins().failures

    assert failure.error.__notes__ == ["before it failed, it printed: no licence"]


def test_an_empty_registry_has_a_readable_error():
    """Without plugins every name is unknown, and the message still reads well."""
    with pytest.raises(PluginError, match="Known: none"):
        Registry().get("reward", "hps")


def test_a_target_that_cannot_be_imported_is_named(install):
    """The error of a component has its plugin, its target and the reason."""
    install("acme-lost", OFFER.format(name="lost").replace("acme:Thing", "acme_nowhere:Thing"))

    with pytest.raises(PluginError, match="'lost' of plugin 'acme-lost/acme_lost'.*acme_nowhere:Thing.*No module"):
        load_plugins().get("energy", "lost").load()


def test_an_exception_of_a_plugin_keeps_its_type_and_gains_a_note(install):
    """A bug in a plugin is not disguised: a note is added."""
    install("acme-bug", OFFER.format(name="bug").replace("acme:Thing", "acme_bug:Thing") + "\nclass Thing: ...")

    with pytest.raises(TypeError) as caught:
        load_plugins().get("energy", "bug").build()

    assert caught.value.__notes__ == ["in energy 'bug' of acme-bug/acme_bug"]


def test_blame_leaves_a_mistake_of_the_user_alone():
    """One-line errors are for the user, not about the plugin."""
    with pytest.raises(PluginError) as caught, blame("x"):
        raise PluginError("one line")

    assert not hasattr(caught.value, "__notes__")


def test_all_hooks_have_one_shape(install):
    """Every kind is registered by the same call."""
    lines = ["from guidedcd import *", "import guidedcd"]
    for kind, hook in HOOKS.items():
        config = f"guidedcd.{kind.capitalize()}Config"
        lines += ["@hookimpl", f"def {hook}(register):", f"    register('all-{kind}', 'a:B', config={config})"]
    install("acme-all", "\n".join(lines))

    kinds = {c.kind for c in load_plugins().components if c.plugin == "acme-all/acme_all"}

    assert kinds == set(HOOKS)


def test_order_does_not_depend_on_the_order_of_folders(install):
    """Components come in the order of their plugins' ids."""
    install("zzz-last", OFFER.format(name="last"))
    install("aaa-first", OFFER.format(name="first"))

    plugins = [c.plugin for c in load_plugins().components]

    assert plugins == sorted(plugins)
