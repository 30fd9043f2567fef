"""Energies that are wrong in one way each: what a run states about them, and the check of the kit that fails."""

from __future__ import annotations

import pytest
import torch
from toy_plugin import make

from guidedcd.errors import GuidedCDError
from guidedcd.plugins.isolation import PluginWarning
from guidedcd.plugins.registry import load_plugins
from guidedcd.preprocessing.shard_builder import ShardBuilder
from guidedcd.testing import checks

pytestmark = pytest.mark.slow

PLUGIN = """
import torch
from guidedcd import EnergyConfig, GuidedCDError, hookimpl

class Odd:
    {members}
    def __init__(self, config): {init}
    def __call__(self, seen, reference):
        {body}

@hookimpl
def register_energies(register): register("odd", "acme_odd:Odd", config=EnergyConfig)
"""
VALUE = "(seen.x0 - reference.x0).square().flatten(1).mean(1)"
"""The energy that is right."""
WRONG = {
    "one number for the batch": (f"return {VALUE}.mean()", r"returned a tensor \(\) for 1 samples"),
    "a column": (f"return {VALUE}[:, None]", r"returned a tensor \(1, 1\) for 1 samples"),
    "a list": (f"return {VALUE}.tolist()", "returned list"),
    "a tuple": (f"return {VALUE}, 1", "returned tuple"),
    "nothing": ("seen.x0", "returned NoneType"),
    "numpy": (f"return {VALUE}.detach().numpy()", "returned ndarray"),
    "whole numbers": (f"return {VALUE}.long()", "does not depend on its first argument"),
    "complex numbers": (f"return {VALUE}.to(torch.complex64)", "returned complex numbers"),
    "detached": (f"return {VALUE}.detach()", "does not depend on its first argument"),
    "not finite": (f"return {VALUE} / 0", "gradient that is not finite for 'a ball"),
    "a gradient that is not finite": ("return (seen.x0 * 0).square().flatten(1).sum(1).sqrt()", "not finite"),
    "gradients turned off": (f"torch.set_grad_enabled(False); return {VALUE}", "changed torch's gradient mode"),
    "gradients turned off at the end": (
        f"value = {VALUE}; torch.set_grad_enabled(False); return value",
        "changed torch's gradient mode",
    ),
    "sys.exit": ("raise SystemExit(0)", "ended the program: SystemExit: 0"),
    "another default dtype": (
        f"torch.set_default_dtype(torch.float64); return {VALUE}",
        "changed torch's default dtype, which all code shares",
    ),
    "another seed": (f"torch.manual_seed(12345); return {VALUE}", "changed torch's seed"),
    "another working directory": (f"import os; os.chdir('/'); return {VALUE}", "changed the working directory"),
    "reference changed in place": (f"reference.x0.mul_(0.5); return {VALUE}", "changed a tensor of its arguments"),
    "x0 changed in place": (f"seen.x0.mul_(0.5); return {VALUE}", "changed a tensor of its arguments"),
    "noise level changed in place": (f"seen.alpha.mul_(0.5); return {VALUE}", "changed a tensor of its arguments"),
}
"""By fault, the body of `__call__` and the end of the run's sentence."""
RAISING = {
    "raises": ("raise ValueError('odd')", ValueError),
    "asserts": ("assert False", AssertionError),
    "calls itself": ("return self(seen, reference)", RecursionError),
    "sets a field of its argument to a text": (f"seen.z = 'x'; return {VALUE}", Exception),
}
BUILDING = {
    "sys.exit": ("raise SystemExit(0)", "ended the program: SystemExit: 0"),
    "os._exit": ("import os; os._exit(4)", r"ended the program: .*os._exit\(4\)"),
}
MEMBERS = {
    "needs without a comma": ("needs = 'temporal-attention:official'", r"with a comma"),
    "needs misspelt": ("needs = ('temporal-atention:official',)", "cannot record 'temporal-atention:official'"),
    "needs of layers that are missing": ("needs = ('temporal-attention:nowhere',)", "no temporal attention matches"),
    "needs of numbers": ("needs = (1,)", "must be a tuple of texts"),
}


@pytest.fixture(autouse=True)
def only_it(monkeypatch):
    """Leave out the plugins of guidedcd, which take time."""
    monkeypatch.setenv("GUIDEDCD_BLOCK", "guidedcd")


def rehearsed(install, *, body=f"return {VALUE}", members="", init="..."):
    """Take the gradient of the plugin's energy once, as a run does before the store is computed."""
    install("acme-odd", PLUGIN.format(body=body, members=members, init=init))
    run = make(replace=["energy", "rewards"], energy={"odd": {"relative": 0.1}})
    ShardBuilder(run, run.teacher.build()).rehearse()


@pytest.mark.parametrize(("body", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_result_stops_the_run_before_the_store(toy, install, body, message):
    """One sentence names the energy and the fault, and the process is as it was."""
    with pytest.raises(GuidedCDError, match=rf"^energy 'odd' of acme-odd/acme_odd .*{message}"):
        rehearsed(install, body=body)

    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(("body", "error"), RAISING.values(), ids=RAISING)
def test_an_exception_keeps_its_type_and_names_the_plugin(toy, install, body, error):
    """The author needs the traceback, the user the name."""
    with pytest.raises(error) as caught:
        rehearsed(install, body=body)

    assert any("energy 'odd' of acme-odd/acme_odd" in note for note in caught.value.__notes__)


@pytest.mark.parametrize(("init", "message"), BUILDING.values(), ids=BUILDING)
def test_a_constructor_that_ends_the_program_is_an_error(toy, install, init, message):
    """Neither `sys.exit` nor `os._exit` ends a run without a sentence."""
    with pytest.raises(GuidedCDError, match=f"^energy 'odd' of acme-odd/acme_odd {message}"):
        rehearsed(install, init=init)


@pytest.mark.parametrize(("members", "message"), MEMBERS.values(), ids=MEMBERS)
def test_wrong_needs_are_one_sentence(toy, install, members, message):
    """What an energy reads of the network is checked before any pass."""
    with pytest.raises(GuidedCDError, match=f"^energy 'odd' of acme-odd/acme_odd.*{message}"):
        rehearsed(install, members=members)


CHANGED = {
    "default dtype": ("torch.set_default_dtype(torch.float64)", "torch's default dtype"),
    "seed": ("torch.manual_seed(12345)", "torch's seed"),
    "gradients": ("torch.set_grad_enabled(False)", "torch's gradient mode"),
    "working directory": ("import os; os.chdir('/')", "the working directory"),
}


@pytest.mark.parametrize(("init", "phrase"), CHANGED.values(), ids=CHANGED)
def test_a_constructor_that_changes_the_process_is_a_warning(toy, install, init, phrase):
    """The former value is restored, so that results do not depend on the order of components."""
    install("acme-odd", PLUGIN.format(body=f"return {VALUE}", members="", init=init))

    with pytest.warns(PluginWarning, match=f"energy 'odd' of acme-odd/acme_odd changed {phrase} when it was built"):
        load_plugins().get("energy", "odd").build()

    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32


def test_the_right_energy_is_rehearsed(toy, install):
    """The same plugin without a fault passes."""
    rehearsed(install)


KIT = {
    "keeps what it saw": (
        f"self.all = [*getattr(self, 'all', []), seen.x0]; return {VALUE}",
        "energy_frees_memory",
        "memory grows with every step",
    ),
    "changes x0": (f"seen.x0.mul_(0.5); return {VALUE}", "energy_leaves_its_arguments", "in place"),
    "default dtype": (
        f"torch.set_default_dtype(torch.float64); return {VALUE}",
        "energy_is_one_number_per_sample",
        "changed torch's default dtype",
    ),
    "whole numbers": (f"return {VALUE}.long()", "energy_is_one_number_per_sample", "real floats"),
    "blind to the order of frames": (
        "return (seen.x0.mean(2) - reference.x0.mean(2)).square().flatten(1).mean(1)",
        "energy_reads_the_order_of_frames",
        "the order of frames has no effect",
    ),
}


@pytest.mark.parametrize(("body", "rule", "message"), KIT.values(), ids=KIT)
def test_the_kit_finds_the_fault(install, body, rule, message):
    """One check fails with a sentence."""
    install("acme-odd", PLUGIN.format(body=body, members="reads_motion = True", init="..."))
    (check,) = [check for check in checks("energy", "odd") if check.rule.__name__ == rule]

    with pytest.raises(AssertionError, match=message):
        check()


CONSTRUCTORS = {
    "default dtype": ("torch.set_default_dtype(torch.float64)", "building_leaves_the_process_alone"),
    "seed": ("torch.manual_seed(12345)", "building_leaves_the_process_alone"),
    "sys.exit": ("raise SystemExit(3)", "component_can_be_built"),
}


@pytest.mark.parametrize(("init", "rule"), CONSTRUCTORS.values(), ids=CONSTRUCTORS)
def test_the_kit_checks_the_constructor(install, init, rule):
    """A constructor that changes torch's defaults, or ends the program, fails one check."""
    install("acme-odd", PLUGIN.format(body=f"return {VALUE}", members="", init=init))
    (check,) = [check for check in checks("energy", "odd") if check.rule.__name__ == rule]

    with pytest.raises((AssertionError, GuidedCDError), match="energy 'odd' of acme-odd/acme_odd"):
        check()
