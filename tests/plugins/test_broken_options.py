"""Registrations, options and metadata that are wrong in one way each: the fault is stated, and nothing else fails."""

from __future__ import annotations

import pytest

from guidedcd.plugins.registry import load_plugins
from guidedcd.plugins.requirements import requirements

OFFER = """
import attrs
from guidedcd import EnergyConfig, RewardConfig, hookimpl

@attrs.frozen(kw_only=True)
class Config(EnergyConfig):
    {option}

@hookimpl
def register_energies(register): register({arguments})
"""
RIGHT = '"odd", "acme_odd:Odd", config=Config'
OPTIONS = {
    "a text as the default of a number": (
        'gain: float = "x"',
        "the default of Config.gain is 'x', but its type is float",
    ),
    "a fraction as the default of a count": ("count: int = 1.5", "Config.count is 1.5, but its type is int"),
    "a truth value as the default of a count": ("count: int = True", "Config.count is True, but its type is int"),
    "a list as default": ("sizes: list = []", "Config.sizes has a list as its default, which all runs would share"),
    "a dict as default": ("sizes: dict = {}", "Config.sizes has a dict as its default"),
    "an object as default": ("thing: object = attrs.field(factory=object)", "Config.thing has a object as its default"),
    "a text for `scale`": ('scale: str = "big"', "the default of Config.scale, 'big', is none that guidedcd accepts"),
    "a `fraction` above 1": ("fraction: float = 7.0", "the default of Config.fraction, 7.0, is none"),
    "an unknown `reference`": ('reference: str = "mean"', "the default of Config.reference, 'mean', is none"),
}
REFUSED = {
    "a name of two words": ('"Bad Name", "a:B", config=Config', "must be lower-case words joined by '-'"),
    "a name with an umlaut": ('"ödd", "a:B", config=Config', "must be lower-case words joined by '-'"),
    "bytes as name": ('b"odd", "a:B", config=Config', "must be a text"),
    "a class as target": ('"odd", Config, config=Config', "must be a text such as 'package.module:Class'"),
    "a target without attribute": ('"odd", "acme_odd", config=Config', "must be 'module:attribute'"),
    "an object as config": ('"odd", "a:B", config=Config()', "must be a subclass of guidedcd.EnergyConfig"),
    "a config of another kind": ('"odd", "a:B", config=RewardConfig', "must be a subclass of guidedcd.EnergyConfig"),
    "no text as summary": ('"odd", "a:B", config=Config, summary=None', "summary of energy 'odd' must be a text"),
    "an unknown argument": ('"odd", "a:B", config=Config, weight=1', "unexpected keyword argument 'weight'"),
}
CONFIGS = {
    "no default": ("must: int", "must have a default for every field"),
    "a default that its validator refuses": (
        "gain: float = attrs.field(default=-1.0, validator=attrs.validators.ge(0))",
        "'gain' must be >= 0",
    ),
    "a default that raises": ("gain: float = attrs.field(factory=lambda: 1 / 0)", "division by zero"),
    "a default that exits": ("gain: float = attrs.field(factory=lambda: exit(3))", "SystemExit: 3"),
    "a number that cannot be printed": ("count: int = 10**5000", "Exceeds the limit"),
}
METADATA = {
    "a requirement that cannot be read": ({"requires": "??? bad !!"}, "its requirement '??? bad !!' cannot be read"),
    "a marker that cannot be read": ({"requires": "foo; python_version >> 3"}, "cannot be read"),
    "a later guidedcd": ({"requires": "guidedcd>=99"}, "is installed, >=99 is required"),
    "a missing package": ({"requires": "no-such-package"}, "no-such-package is not installed"),
}


@pytest.fixture(autouse=True)
def only_it(monkeypatch):
    """Leave out the plugins of guidedcd, which take time."""
    monkeypatch.setenv("GUIDEDCD_BLOCK", "guidedcd")


@pytest.mark.parametrize(("option", "message"), OPTIONS.values(), ids=OPTIONS)
def test_a_wrong_default_is_noted(install, option, message):
    """The plugin loads, and the note names the option."""
    install("acme-odd", OFFER.format(option=option, arguments=RIGHT))

    texts = [note.text for note in load_plugins().notes if note.plugin == "acme-odd/acme_odd"]

    assert any(message in text for text in texts), texts


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_registration_does_not_load(install, arguments, message):
    """The failure names the argument."""
    install("acme-odd", OFFER.format(option="x: int = 1", arguments=arguments))

    (failure,) = load_plugins().failures

    assert failure.plugin == "acme-odd/acme_odd" and message in str(failure.error)


@pytest.mark.parametrize(("option", "message"), CONFIGS.values(), ids=CONFIGS)
def test_a_config_without_usable_defaults_does_not_load(install, option, message):
    """Help builds every config."""
    install("acme-odd", OFFER.format(option=option, arguments=RIGHT))

    (failure,) = load_plugins().failures

    assert message in f"{type(failure.error).__name__}: {failure.error}"


@pytest.mark.parametrize(("metadata", "message"), METADATA.values(), ids=METADATA)
def test_requirements_that_are_not_met_are_named(install, metadata, message):
    """Also those that nobody can read."""
    install("acme-odd", OFFER.format(option="x: int = 1", arguments=RIGHT), **metadata)

    (missing,) = requirements(["acme-odd/acme_odd"]).values()

    assert len(missing) == 1 and message in missing[0]


def test_two_distributions_with_one_component_are_both_listed(install):
    """Both are listed, and neither wins."""
    for name in ("acme-odd", "acme-twin"):
        install(
            name,
            OFFER.format(option="x: int = 1", arguments=RIGHT),
            entry_points=f"[guidedcd]\nsame = {name.replace('-', '_')}\n",
        )

    assert load_plugins().contested() == [("energy 'odd'", ["acme-odd/same", "acme-twin/same"])]


def test_the_shipped_options_are_right(monkeypatch):
    """No config that comes with guidedcd has a note about its options."""
    monkeypatch.delenv("GUIDEDCD_BLOCK")

    assert [note for note in load_plugins().notes if "importing it takes" not in note.text] == []
